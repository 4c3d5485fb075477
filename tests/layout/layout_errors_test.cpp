// What layouts refuse, and that the refusal says what is wrong.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "model/catalogue.hpp"

namespace awex::test {
namespace {

Catalogue small_model() {
  ModelConfig config;
  config.layers = 1;
  config.hidden = 8;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 2;
  config.intermediate = 16;
  config.vocab = 256;
  return make_catalogue("small", config);
}

/// The call must throw a request error whose message or hint has every one of `words`.
void check_refused(const std::function<void()>& call, const std::vector<std::string>& words) {
  try {
    call();
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    const std::string text = std::string(error.what()) + "\n" + error.hint();
    CAPTURE(text);
    for (const std::string& word : words) {
      CAPTURE(word);
      CHECK(text.find(word) != std::string::npos);
    }
  }
}

}  // namespace

TEST_CASE("specs that say nothing sensible are refused with what is wrong in them") {
  struct Wrong {
    std::string spec;
    std::vector<std::string> words;
  };
  const Catalogue catalogue = small_model();
  for (const Wrong& wrong : {Wrong{"", {}},
                             Wrong{"megatrom:tp=2", {"megatrom", "megatron"}},
                             Wrong{":tp=2", {}},
                             Wrong{"megatron:", {"megatron:"}},
                             Wrong{"megatron:tp", {"tp"}},
                             Wrong{"megatron:tp=", {"tp"}},
                             Wrong{"megatron:=2", {}},
                             Wrong{"megatron:tp=2,", {"tp=2,"}},
                             Wrong{"megatron:tp=2,tp=2", {"tp"}},
                             Wrong{"megatron:tq=2", {"tq", "tp"}},
                             Wrong{"megatron:tp=0", {"tp", "0"}},
                             Wrong{"megatron:tp=-1", {"tp", "-1"}},
                             Wrong{"megatron:tp=+2", {"tp", "+2"}},
                             Wrong{"megatron:tp= 2", {"tp"}},
                             Wrong{"megatron:tp=2x", {"tp", "2x"}},
                             Wrong{"megatron:tp=1.5", {"tp", "1.5"}},
                             Wrong{"megatron:tp=0x2", {"tp", "0x2"}},
                             Wrong{"megatron:tp=65537", {"tp", "65537"}},
                             Wrong{"megatron:tp=99999999999999999999999", {"tp", "99999999999"}},
                             Wrong{"hf:tp=2", {"tp"}}}) {
    CAPTURE(wrong.spec);
    check_refused([&] { (void)make_trainer_layout(wrong.spec, catalogue, 2); }, wrong.words);
  }
}

TEST_CASE("an engine is refused in the role that it does not have") {
  const Catalogue catalogue = small_model();
  check_refused([&] { (void)make_trainer_layout("sglang:tp=2", catalogue, 2); },
                {"sglang", "megatron"});
  check_refused([&] { (void)make_inference_layout("megatron:tp=2", catalogue, 2); },
                {"megatron", "sglang"});
}

TEST_CASE("ranks that the engine's world does not divide are refused") {
  const Catalogue catalogue = small_model();
  for (const uint32_t ranks : {1U, 3U, 5U}) {
    CAPTURE(ranks);
    check_refused([&] { (void)make_trainer_layout("megatron:tp=2", catalogue, ranks); },
                  {"tp=2", std::to_string(ranks)});
    check_refused([&] { (void)make_inference_layout("sglang:tp=2", catalogue, ranks); },
                  {"tp=2", std::to_string(ranks)});
  }
}

TEST_CASE("a tp that the model's sizes do not divide by is refused, and the size is named") {
  const Catalogue catalogue = small_model();
  check_refused([&] { (void)make_trainer_layout("megatron:tp=3", catalogue, 3); },
                {"tp", "3", "8"});
  check_refused([&] { (void)make_inference_layout("sglang:tp=3", catalogue, 3); },
                {"tp", "3", "8"});
  check_refused([&] { (void)make_trainer_layout("megatron:tp=16", catalogue, 16); },
                {"tp", "16", "8"});
}

}  // namespace awex::test
