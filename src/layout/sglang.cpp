#include "layout/sglang.hpp"

#include <string>
#include <utility>

#include "base/error.hpp"
#include "layout/builder.hpp"
#include "layout/fused.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

struct Options {
  uint32_t tp = 1;
  uint32_t pp = 1;
  uint32_t ep = 1;
  uint32_t attn_dp = 1;
  std::string embed;
  bool dp_lm_head = false;
  bool fuse_shared = false;
  std::string dense_mlp;
  std::string shared_experts;

  /// tp always, the others where they are not what they are by default.
  [[nodiscard]] std::string text() const {
    std::string text = fmt::format("sglang:tp={}", tp);
    if (pp > 1) text += fmt::format(",pp={}", pp);
    if (ep > 1) text += fmt::format(",ep={}", ep);
    if (attn_dp > 1) text += fmt::format(",attn_dp={}", attn_dp);
    if (embed != "attn_tp") text += ",embed=" + embed;
    if (dp_lm_head) text += ",dp_lm_head=on";
    if (fuse_shared) text += ",fuse_shared=on";
    if (dense_mlp != "tp") text += ",dense_mlp=" + dense_mlp;
    if (shared_experts != "tp") text += ",shared_experts=" + shared_experts;
    return text;
  }
};

Options read(const EngineSpec& spec) {
  spec.allow_only({"tp", "pp", "ep", "attn_dp", "embed", "dp_lm_head", "fuse_shared", "dense_mlp",
                   "shared_experts", "dtype", "router_dtype", "block"});
  Options options{.tp = spec.count("tp", 1),
                  .pp = spec.count("pp", 1),
                  .ep = spec.count("ep", 1),
                  .attn_dp = spec.count("attn_dp", 1),
                  .embed = spec.choice("embed", {"attn_tp", "tp", "replicated"}),
                  .dp_lm_head = spec.flag("dp_lm_head", false),
                  .fuse_shared = spec.flag("fuse_shared", false),
                  .dense_mlp = spec.choice("dense_mlp", {"tp", "replicated"}),
                  .shared_experts = spec.choice("shared_experts", {"tp", "replicated"})};
  check_divides("tp", options.tp, "ep", options.ep);
  check_divides("tp", options.tp, "attn_dp", options.attn_dp);
  return options;
}

}  // namespace

std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                           uint32_t ranks) {
  const Options options = read(spec);
  check_instances(ranks, options.tp, options.pp, 1);
  const ModelConfig& config = catalogue.config();
  const Ways tp{options.tp, {"tp"}};
  const Ways attention{options.tp / options.attn_dp, {options.attn_dp > 1 ? "tp/attn_dp" : "tp"}};
  check_divides("number of experts", config.experts, "ep", options.ep);
  FusedEngine engine{
      .spec = options.text() + DTypeRules::read(spec, config).text(),
      .tp = options.tp,
      .stages = split_layers(config.layers, options.pp,
                             {options.pp - config.layers % options.pp, options.pp}),
      .embedding = options.embed == "tp"        ? tp
                   : options.embed == "attn_tp" ? attention
                                                : Ways{},
      .head = options.dp_lm_head ? attention : tp,
      .attention = attention,
      .dense_mlp =
          options.dense_mlp == "tp" ? Ways{options.tp, {"tp", "dense_mlp=replicated"}} : Ways{},
      .shared_experts = options.shared_experts == "tp"
                            ? Ways{options.tp, {"tp", "shared_experts=replicated"}}
                            : Ways{},
      .experts = {options.tp / options.ep, {options.ep > 1 ? "tp/ep" : "tp", "a larger ep"}},
      .fuse_shared_experts = options.fuse_shared,
      .fused_qkv_a = "fused_qkv_a_proj_with_mqa",
      .tied_head = "lm_head.weight"};
  return make_fused_layout(catalogue, std::move(engine), ranks);
}

}  // namespace awex
