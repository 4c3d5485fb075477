// What layouts refuse, and that the refusal says what is wrong.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/layout_text.hpp"
#include "model/catalogue.hpp"
#include "model/presets.hpp"

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
    check_request_refused([&] { (void)make_trainer_layout(wrong.spec, catalogue, 2); },
                          wrong.words);
  }
}

TEST_CASE("an engine is refused in the role that it does not have") {
  const Catalogue catalogue = small_model();
  check_request_refused([&] { (void)make_trainer_layout("sglang:tp=2", catalogue, 2); },
                        {"sglang", "megatron"});
  check_request_refused([&] { (void)make_inference_layout("megatron:tp=2", catalogue, 2); },
                        {"megatron", "sglang"});
}

TEST_CASE("ranks that the engine's world does not divide are refused") {
  const Catalogue catalogue = small_model();
  for (const uint32_t ranks : {1U, 3U, 5U}) {
    CAPTURE(ranks);
    // Who starts too few ranks is told that there may be more, and what they are.
    const std::string more = "more GPUs, each with two ranks: one trainer, one inference";
    for (const char* spec : {"megatron:tp=2", "megatron:cp=2", "megatron:pp=2", "fsdp:shard=2",
                             "fsdp:tp=2", "fsdp:replicate=2"}) {
      CAPTURE(spec);
      const std::string option = std::string(spec).substr(std::string(spec).find(':') + 1);
      check_request_refused([&] { (void)make_trainer_layout(spec, catalogue, ranks); },
                            {option, std::to_string(ranks), more});
    }
    check_request_refused([&] { (void)make_inference_layout("sglang:tp=2", catalogue, ranks); },
                          {"tp=2", std::to_string(ranks), more});
  }
}

TEST_CASE("a tp that the model's sizes do not divide by is refused, and the size is named") {
  const Catalogue catalogue = small_model();
  check_request_refused([&] { (void)make_trainer_layout("megatron:tp=3", catalogue, 3); },
                        {"tp", "3", "8"});
  check_request_refused([&] { (void)make_inference_layout("sglang:tp=3", catalogue, 3); },
                        {"tp", "3", "8"});
  check_request_refused([&] { (void)make_trainer_layout("megatron:tp=16", catalogue, 16); },
                        {"tp", "16", "8"});
}

TEST_CASE("parallel sizes that fit neither ranks nor model are refused, and the option is named") {
  struct Wrong {
    std::string spec;
    uint32_t ranks;
    std::vector<std::string> words;
  };
  const Catalogue dense = small_model();
  const Catalogue moe = make_catalogue("moe", preset_config("tiny-moe"));
  const auto check_all = [](auto make, const Catalogue& catalogue, const std::vector<Wrong>& all) {
    for (const Wrong& wrong : all) {
      CAPTURE(wrong.spec);
      check_request_refused([&] { (void)make(wrong.spec, catalogue, wrong.ranks); }, wrong.words);
    }
  };
  check_all(make_trainer_layout, moe,
            {{"megatron:pp=5", 5, {"pp", "5", "12"}},
             {"megatron:tp=2,pp=3", 8, {"pp=3", "8"}},
             {"megatron:pp=2,first=13", 2, {"first", "13", "12"}},
             {"megatron:pp=3,first=2,account_for_loss=on", 3, {"first", "account_for_loss"}},
             {"megatron:pp=2,vpp=5", 2, {"vpp", "5"}},
             {"megatron:pp=2,layout=Ettt|tttL", 2, {"layout", "12"}},
             {"megatron:pp=2,layout=Et*6|x*6L", 2, {"layout", "x"}},
             {"megatron:ep=5", 5, {"ep", "5", "12"}},
             {"megatron:tp=4,etp=5,ep=1", 20, {"etp", "5", "48"}},
             {"megatron:ep=4,etp=2", 4, {"etp", "4"}},
             {"megatron:experts=group", 1, {"experts", "group", "grouped"}},
             {"megatron:pad_with_tp=yes", 1, {"pad_with_tp", "yes", "on"}},
             {"fsdp:shard=3", 8, {"shard", "3", "8"}},
             {"fsdp:shard=4,replicate=3", 8, {"replicate", "3"}},
             {"fsdp:tp=5", 5, {"tp", "5"}}});
  check_all(make_inference_layout, moe,
            {{"sglang:tp=4,ep=3", 4, {"ep", "3", "4"}},
             {"sglang:tp=4,attn_dp=3", 4, {"attn_dp", "3", "4"}},
             {"sglang:tp=2,embed=none", 2, {"embed", "none", "replicated"}},
             {"sglang:pp=13", 13, {"pp", "13", "12"}},
             {"vllm:tp=2,pp=2", 6, {"pp", "6"}},
             {"vllm:tp=1,dp=5,ep=off", 5, {"dp", "48", "5"}},
             {"vllm:tp=1,dp=13,ep=on", 13, {"12", "13"}}});
  check_all(make_trainer_layout, dense, {{"megatron:pp=2", 2, {"pp", "2", "1"}}});
}

}  // namespace awex::test
