#include "layout/engines.hpp"

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

using Maker = std::unique_ptr<Layout> (*)(const EngineSpec&, const Catalogue&, uint32_t);

std::unique_ptr<Layout> make_layout(const char* role, const std::map<std::string, Maker>& engines,
                                    const EngineSpec& spec, const Catalogue& catalogue,
                                    uint32_t ranks) {
  const auto found = engines.find(spec.engine());
  if (found == engines.end()) {
    std::vector<std::string> names;
    for (const auto& [name, maker] : engines) names.push_back(name);
    throw request_error(fmt::format("\"{}\" is no {} engine", spec.engine(), role),
                        suggestion(spec.engine(), names));
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
