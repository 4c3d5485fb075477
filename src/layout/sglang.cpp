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
  bool fuses_by_default = false;
  bool keeps_fp8 = false;
  std::string usual_embed;
  std::string dense_mlp;
  std::string shared_experts;

  /// tp always, the others where they are not what they are by default.
  [[nodiscard]] std::string text() const {
    std::string text = fmt::format("sglang:tp={}", tp);
    if (pp > 1) text += fmt::format(",pp={}", pp);
    if (ep > 1) text += fmt::format(",ep={}", ep);
    if (attn_dp > 1) text += fmt::format(",attn_dp={}", attn_dp);
    if (embed != usual_embed) text += ",embed=" + embed;
    if (dp_lm_head) text += ",dp_lm_head=on";
    if (fuse_shared != fuses_by_default) {
      text += fmt::format(",fuse_shared={}", fuse_shared ? "on" : "off");
    }
    if (dense_mlp != "tp") text += ",dense_mlp=" + dense_mlp;
    if (shared_experts != "tp") text += ",shared_experts=" + shared_experts;
    if (keeps_fp8) text += ",keeps_fp8=on";
    return text;
  }
};

/// Whether the engine makes the shared expert one more routed expert unless it is told otherwise,
/// on an NVIDIA GPU (shared_experts_fusion_disable_reason of its classes, asked). GLM-4.5's class
/// fails to load more than one; DeepEP, which shared_experts=replicated stands for, keeps them
/// apart.
bool fuses_shared_by_default(const ModelConfig& config, const Options& options) {
  if (config.shared_experts != 1 || options.ep > 1 || options.shared_experts != "tp") return false;
  switch (config.architecture) {
    case Architecture::kGlm4Moe:
      return true;
    case Architecture::kDeepseekV3:
      return config.experts == 256;
    case Architecture::kLlama:
    case Architecture::kQwen2:
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe:
      return false;
  }
  return false;
}

/// Classes that know nothing of data parallel attention: q, k, v and o stay split over tp.
bool splits_attention_over_tp(const ModelConfig& config) {
  return config.architecture == Architecture::kLlama || config.architecture == Architecture::kQwen2;
}

/// How the class splits its embedding under data parallel attention.
const char* usual_embedding(const ModelConfig& config) {
  return config.architecture == Architecture::kLlama ? "tp" : "attn_tp";
}

/// Whether the class follows --enable-dp-lm-head.
bool splits_head_by_option(const ModelConfig& config) {
  return config.architecture != Architecture::kQwen2;
}

/// Whether the class follows --moe-dense-tp-size: those of models whose first layers are dense.
bool splits_dense_mlp_by_option(const ModelConfig& config) {
  return config.architecture == Architecture::kDeepseekV3 ||
         config.architecture == Architecture::kGlm4Moe;
}

Ways dense_mlp_of(const ModelConfig& config, const Options& options) {
  if (!splits_dense_mlp_by_option(config)) return {options.tp, {"tp"}};
  if (options.dense_mlp == "replicated") return {};
  return {options.tp, {"tp", "dense_mlp=replicated"}};
}

/// models/qwen3_moe.py makes every layer sparse and skips what a checkpoint has of dense ones.
void check_layers(const ModelConfig& config) {
  if (config.architecture != Architecture::kQwen3Moe) return;
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) continue;
    throw request_error(
        fmt::format(
            "SGLang's Qwen3-MoE has experts in every layer, layer {} of this model has none "
            "(mlp_only_layers, decoder_sparse_step): the engine would not load it",
            layer),
        "serve this model with vllm");
  }
}

/// The engine's classes with experts do not start with more tensor parallel ranks than experts, ep
/// or not.
void check_experts(const ModelConfig& config, const Options& options) {
  check_divides("number of experts", config.experts, "ep", options.ep);
  if (config.experts == 0 || options.tp <= config.experts) return;
  throw request_error(fmt::format("SGLang does not start with tp={} for a model of {} experts",
                                  options.tp, config.experts),
                      fmt::format("choose a tp of at most {}", config.experts));
}

/// As a Hopper GPU the engine was asked, and keeps fp8 weights and their scales as they were
/// loaded. For Blackwell this is read: process_weights_after_loading_block_quant of
/// layers/quantization/fp8.py, should_deepgemm_weight_requant_ue8m0, and flashinfer_trtllm as the
/// default for experts.
void check_keeps_fp8(const EngineSpec& spec, const DTypeRules& dtypes, const Options& options) {
  const bool is_fp8 = dtypes.main == DType::kF8E4M3;
  if (is_fp8 && !options.keeps_fp8) {
    throw request_error(
        fmt::format("\"{}\": on a Blackwell GPU SGLang requantises fp8 weights after loading to "
                    "scales that are powers of two, and lays experts out anew: what is written as "
                    "it was quantised would be read wrongly",
                    spec.text()),
        "on Hopper SGLang keeps fp8 weights as it loads them: say so with keeps_fp8=on; on "
        "Blackwell leave dtype=fp8 out");
  }
  if (!is_fp8 && options.keeps_fp8) {
    throw request_error(fmt::format("\"{}\": keeps_fp8=on is for dtype=fp8", spec.text()),
                        "add dtype=fp8, or leave keeps_fp8 out");
  }
}

/// Which stages have an lm_head, and whether a tied one is a tensor of its own. Qwen3-MoE's and
/// GLM-4.5's, and DeepSeek's on the last of several stages, are read from a checkpoint that stores
/// the head beside the embedding, and from no other.
void set_head(const ModelConfig& config, FusedEngine& engine) {
  switch (config.architecture) {
    case Architecture::kLlama:
      engine.head_everywhere = true;
      return;
    case Architecture::kQwen3Moe:
    case Architecture::kGlm4Moe:
      engine.head_everywhere = true;
      engine.own_head = true;
      engine.tied_head = "lm_head.weight";
      return;
    case Architecture::kQwen2:
    case Architecture::kQwen3:
    case Architecture::kDeepseekV3:
      engine.tied_head = "lm_head.weight";
      return;
  }
}

std::vector<std::string> notes_of(const ModelConfig& config, const Options& options) {
  std::vector<std::string> notes;
  if (options.attn_dp > 1 && splits_attention_over_tp(config)) {
    notes.emplace_back(
        "SGLang's class of this model has no data parallel attention: its q, k, v and o are split "
        "over tp although attn_dp says otherwise");
  }
  if (config.is_mla()) {
    notes.emplace_back(
        "SGLang computes with copies of kv_b_proj (w_kc, w_vc): run the model's "
        "post_load_weights() after every update, or it serves old attention weights");
  }
  if (config.experts > 0) {
    notes.emplace_back(
        "on a Blackwell GPU SGLang lays experts out anew after loading, unless it is started with "
        "--moe-runner-backend triton");
  }
  return notes;
}

Options read(const EngineSpec& spec, const ModelConfig& config) {
  spec.allow_only({"tp", "pp", "ep", "attn_dp", "embed", "dp_lm_head", "fuse_shared", "dense_mlp",
                   "shared_experts", "keeps_fp8", "dtype", "router_dtype", "block"});
  Options options{.tp = spec.count("tp", 1),
                  .pp = spec.count("pp", 1),
                  .ep = spec.count("ep", 1),
                  .attn_dp = spec.count("attn_dp", 1),
                  .embed = spec.choice("embed", {"attn_tp", "tp", "replicated"}),
                  .dp_lm_head = spec.flag("dp_lm_head", false),
                  .keeps_fp8 = spec.flag("keeps_fp8", false),
                  .usual_embed = usual_embedding(config),
                  .dense_mlp = spec.choice("dense_mlp", {"tp", "replicated"}),
                  .shared_experts = spec.choice("shared_experts", {"tp", "replicated"})};
  check_divides("tp", options.tp, "ep", options.ep);
  check_divides("tp", options.tp, "attn_dp", options.attn_dp);
  if (!spec.text_of("embed")) options.embed = options.usual_embed;
  options.fuses_by_default = fuses_shared_by_default(config, options);
  options.fuse_shared = spec.flag("fuse_shared", options.fuses_by_default);
  return options;
}

}  // namespace

std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                           uint32_t ranks) {
  const ModelConfig& config = catalogue.config();
  const Options options = read(spec, config);
  check_instances(ranks, options.tp, options.pp, 1);
  const DTypeRules dtypes = DTypeRules::read(spec, config);
  check_layers(config);
  check_keeps_fp8(spec, dtypes, options);
  const Ways tp{options.tp, {"tp"}};
  const Ways one_replica{options.tp / options.attn_dp, {options.attn_dp > 1 ? "tp/attn_dp" : "tp"}};
  check_experts(config, options);
  FusedEngine engine{
      .spec = options.text() + dtypes.text(),
      .tp = options.tp,
      .stages = split_layers(config.layers, options.pp,
                             {options.pp - config.layers % options.pp, options.pp}),
      .embedding = options.embed == "tp"        ? tp
                   : options.embed == "attn_tp" ? one_replica
                                                : Ways{},
      .head = options.dp_lm_head && splits_head_by_option(config) ? one_replica : tp,
      .attention = splits_attention_over_tp(config) ? tp : one_replica,
      .dense_mlp = dense_mlp_of(config, options),
      .shared_experts = options.shared_experts == "tp"
                            ? Ways{options.tp, {"tp", "shared_experts=replicated"}}
                            : Ways{},
      .experts = {options.tp / options.ep, {options.ep > 1 ? "tp/ep" : "tp", "a larger ep"}},
      .fuse_shared_experts = options.fuse_shared,
      .fused_qkv_a = "fused_qkv_a_proj_with_mqa",
      .pads_vocabulary_by_parts = true,
      .notes = notes_of(config, options)};
  set_head(config, engine);
  return make_fused_layout(catalogue, std::move(engine), ranks);
}

}  // namespace awex
