#include "layout/vllm.hpp"

#include <string>
#include <utility>

#include "base/error.hpp"
#include "layout/fused.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

struct Options {
  uint32_t tp = 1;
  uint32_t pp = 1;
  uint32_t dp = 1;
  bool ep = false;
  std::string shared_experts;

  /// tp always, the others where they are not what they are by default.
  [[nodiscard]] std::string text() const {
    std::string text = fmt::format("vllm:tp={}", tp);
    if (pp > 1) text += fmt::format(",pp={}", pp);
    if (ep) text += ",ep=on";
    if (dp > 1) text += fmt::format(",dp={}", dp);
    if (shared_experts != "tp") text += ",shared_experts=" + shared_experts;
    return text;
  }
};

Options read(const EngineSpec& spec) {
  spec.allow_only({"tp", "pp", "dp", "ep", "shared_experts", "dtype", "router_dtype", "block"});
  return {.tp = spec.count("tp", 1),
          .pp = spec.count("pp", 1),
          .dp = spec.count("dp", 1),
          .ep = spec.flag("ep", false),
          .shared_experts = spec.choice("shared_experts", {"tp", "replicated"})};
}

}  // namespace

std::unique_ptr<Layout> make_vllm_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                         uint32_t ranks) {
  const Options options = read(spec);
  check_instances(ranks, options.tp, options.pp, options.dp);
  const uint64_t layers = catalogue.config().layers;
  const Ways tp{options.tp, {"tp"}};
  const Ways flat{options.tp * options.dp, {options.dp > 1 ? "dp*tp" : "tp", "ep=on"}};
  const uint32_t before_last = options.pp - 1;
  FusedEngine engine{
      .spec = options.text() + DTypeRules::read(spec, catalogue.config()).text(),
      .tp = options.tp,
      .dp = options.dp,
      .stages = split_layers(layers, options.pp, {before_last - layers % options.pp, before_last}),
      .embedding = tp,
      .head = tp,
      .attention = tp,
      .dense_mlp = tp,
      .shared_experts = options.shared_experts == "tp"
                            ? Ways{options.tp, {"tp", "shared_experts=replicated"}}
                            : Ways{},
      .experts = options.ep ? Ways{} : flat,
      .fused_qkv_a = "fused_qkv_a_proj",
      .tied_head = "model.embed_tokens.weight"};
  return make_fused_layout(catalogue, std::move(engine), ranks);
}

}  // namespace awex
