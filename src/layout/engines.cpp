#include "layout/engines.hpp"

#include <algorithm>
#include <cctype>

#include "base/error.hpp"
#include "base/nearest.hpp"
#include "layout/fsdp.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/hf.hpp"
#include "layout/megatron.hpp"
#include "layout/sglang.hpp"
#include "layout/spec.hpp"
#include "layout/vllm.hpp"

namespace awex {
namespace {

/// What to write instead of an engine that `role` does not have. `names` are those that it has.
std::string engine_hint(std::string_view role, const EngineSpec& spec,
                        const std::vector<std::string>& names) {
  const auto knows = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  std::string word(spec.engine());
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  // "megatron tp=2" and "megatron,tp=2" want a colon.
  const auto end = word.find_first_of(" ,;/=");
  if (end != std::string::npos && knows(word.substr(0, end))) {
    auto options = spec.text().substr(spec.text().find_first_not_of(" ,;/=", end));
    std::replace_if(
        options.begin(), options.end(), [](char c) { return c == ' ' || c == ';' || c == '/'; },
        ',');
    return fmt::format("write {}:{}", word.substr(0, end), options);
  }
  if (word == "mcore" || word == "megatron-core") word = "megatron";
  if (word == "transformers" || word == "huggingface") word = "hf";
  if (knows(word)) return fmt::format("did you mean \"{}\"?", word);
  const bool is_trainer = role == "trainer";
  for (const char* other : {"sglang", "vllm"}) {
    if (is_trainer && word == other)
      return fmt::format("{} is an inference engine: --inference {}; trainers: {}", other,
                         spec.text(), fmt::join(names, ", "));
  }
  for (const char* other : {"megatron", "fsdp"}) {
    if (!is_trainer && word == other)
      return fmt::format("{} is a trainer: --trainer {}; inference engines: {}", other, spec.text(),
                         fmt::join(names, ", "));
  }
  return suggestion(word, names);
}

using Maker = std::unique_ptr<Layout> (*)(const EngineSpec&, const Catalogue&, uint32_t);

std::unique_ptr<Layout> make_layout(const char* role, const std::map<std::string, Maker>& engines,
                                    const EngineSpec& spec, const Catalogue& catalogue,
                                    uint32_t ranks) {
  const auto found = engines.find(spec.engine());
  if (found == engines.end()) {
    std::vector<std::string> names;
    for (const auto& [name, maker] : engines) names.push_back(name);
    throw request_error(fmt::format("\"{}\" is no {} engine", spec.engine(), role),
                        engine_hint(role, spec, names));
  }
  return found->second(spec, catalogue, ranks);
}

}  // namespace

std::unique_ptr<Layout> make_trainer_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                            uint32_t ranks) {
  return make_layout(
      "trainer",
      {{"fsdp", make_fsdp_layout}, {"hf", make_hf_layout}, {"megatron", make_megatron_layout}},
      spec, catalogue, ranks);
}

std::unique_ptr<Layout> make_inference_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                              uint32_t ranks) {
  check_held(DTypeRules::read(spec, catalogue.config()), catalogue);
  return make_layout("inference",
                     {{"hf", make_hf_inference_layout},
                      {"sglang", make_sglang_layout},
                      {"vllm", make_vllm_layout}},
                     spec, catalogue, ranks);
}

}  // namespace awex
