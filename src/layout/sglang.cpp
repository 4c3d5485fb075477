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

/// What SGLang's class of a family does in its own way. Those of Llama, Qwen2, Qwen3, Qwen3-MoE,
/// DeepSeek-V3 and GLM-4.5 were asked (0.5.23, scripts/test-sglang.sh), the others read
/// (models/*.py).
struct ModelClass {
  const char* family;
  const char* embed = "attn_tp";            ///< How it splits its embedding unless it is told.
  bool attention_over_tp = false;           ///< It knows no data parallel attention.
  bool splits_head_by_option = true;        ///< It follows --enable-dp-lm-head.
  bool splits_dense_mlp_by_option = false;  ///< It follows --moe-dense-tp-size.
  /// The number of experts with which it fuses the shared one, on an NVIDIA GPU
  /// (shared_experts_fusion_disable_reason): 0 never, kAnyNumber always.
  uint64_t fuses_shared_with = 0;
  bool sparse_everywhere = false;  ///< Every layer has experts: it skips what dense ones hold.
  bool ignores_head_dim = false;   ///< Heads share the hidden size, whatever the config says.
  bool one_stage = false;          ///< It loads no part of a pipeline.
  bool any_tp = false;             ///< Also more ranks than experts.
  bool head_everywhere = false;    ///< Every stage has the lm_head.
  /// A tied lm_head is a tensor of its own, on one stage, too. It is read from a checkpoint that
  /// stores the head beside the embedding, and from no other; so is DeepSeek's on the last of
  /// several stages.
  bool own_head = false;
  const char* tied_head = "lm_head.weight";       ///< FusedEngine::tied_head.
  const char* moe_module = "mlp.";                ///< FusedEngine::moe_module.
  const char* shared_module = "shared_experts.";  ///< FusedEngine::shared_module.
};
constexpr uint64_t kAnyNumber = ~uint64_t{0};

constexpr ModelClass kClasses[] = {
    {.family = "llama",
     .embed = "tp",
     .attention_over_tp = true,
     .head_everywhere = true,
     .tied_head = ""},
    {.family = "qwen2", .attention_over_tp = true, .splits_head_by_option = false},
    {.family = "qwen3"},
    {.family = "qwen3_moe", .sparse_everywhere = true, .head_everywhere = true, .own_head = true},
    {.family = "deepseek_v3", .splits_dense_mlp_by_option = true, .fuses_shared_with = 256},
    {.family = "glm4_moe",
     .splits_dense_mlp_by_option = true,
     .fuses_shared_with = kAnyNumber,
     .head_everywhere = true,
     .own_head = true},
    {.family = "mistral",
     .embed = "tp",
     .attention_over_tp = true,
     .head_everywhere = true,
     .tied_head = ""},
    {.family = "mixtral",
     .embed = "tp",
     .attention_over_tp = true,
     .splits_head_by_option = false,
     .ignores_head_dim = true,
     .any_tp = true,
     .head_everywhere = true,
     .own_head = true,
     .moe_module = "block_sparse_moe."},
    {.family = "qwen2_moe",
     .sparse_everywhere = true,
     .ignores_head_dim = true,
     .head_everywhere = true,
     .own_head = true,
     .shared_module = "shared_expert."},
    {.family = "mimo",
     .attention_over_tp = true,
     .splits_head_by_option = false,
     .one_stage = true,
     .tied_head = ""},
    {.family = "glm4_moe_lite",
     .splits_dense_mlp_by_option = true,
     .fuses_shared_with = kAnyNumber,
     .head_everywhere = true,
     .own_head = true}};

/// Throws a request error where the engine has no such model.
const ModelClass& class_of(const ModelConfig& config) {
  for (const auto& known : kClasses) {
    if (config.family == known.family) return known;
  }
  throw request_error(
      fmt::format("SGLang (0.5.23) has no class for models of type {}", config.family),
      "hold it whole on every rank: hf");
}

/// Whether the engine makes the shared expert one more routed expert unless it is told otherwise.
/// GLM-4.5's class fails to load more than one; DeepEP, which shared_experts=replicated stands for,
/// keeps them apart.
bool fuses_shared_by_default(const ModelConfig& config, const Options& options) {
  if (config.shared_experts != 1 || options.ep > 1 || options.shared_experts != "tp") return false;
  const uint64_t experts = class_of(config).fuses_shared_with;
  return experts == kAnyNumber || experts == config.experts;
}

Ways dense_mlp_of(const ModelConfig& config, const Options& options) {
  if (!class_of(config).splits_dense_mlp_by_option) return {options.tp, {"tp"}};
  if (options.dense_mlp == "replicated") return {};
  return {options.tp, {"tp", "dense_mlp=replicated"}};
}

void check_layers(const ModelConfig& config) {
  if (!class_of(config).sparse_everywhere) return;
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) continue;
    throw request_error(
        fmt::format("SGLang's class of {} has experts in every layer, layer {} of this model has "
                    "none (mlp_only_layers, decoder_sparse_step): the engine would not load it",
                    config.family, layer),
        "serve this model with vllm");
  }
}

/// What SGLang's class of the model does not take, or builds otherwise than config.json says.
void check_model(const EngineSpec& spec, const Options& options, const ModelConfig& config) {
  check_layers(config);
  const ModelClass& model_class = class_of(config);
  if (model_class.ignores_head_dim && config.head_dim * config.heads != config.hidden) {
    throw request_error(
        fmt::format(
            "\"{}\": SGLang's class of {} takes hidden_size / num_attention_heads = {} / {} "
            "for the size of a head and ignores head_dim = {}: it would load other weights",
            spec.text(), config.family, config.hidden, config.heads, config.head_dim),
        "hold it whole on every rank: hf");
  }
  if (model_class.one_stage && options.pp > 1) {
    throw request_error(fmt::format("\"{}\": SGLang's class of {} fails to load on several stages",
                                    spec.text(), config.family),
                        "leave pp out");
  }
}

/// Classes with experts do not start with more tensor parallel ranks than experts, ep or not, but
/// for Mixtral's.
void check_experts(const ModelConfig& config, const Options& options) {
  check_divides("number of experts", config.experts, "ep", options.ep);
  if (class_of(config).any_tp || config.experts == 0 || options.tp <= config.experts) return;
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

std::vector<std::string> notes_of(const ModelConfig& config, const Options& options) {
  std::vector<std::string> notes;
  if (options.attn_dp > 1 && class_of(config).attention_over_tp) {
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
                  .usual_embed = class_of(config).embed,
                  .dense_mlp = spec.choice("dense_mlp", {"tp", "replicated"}),
                  .shared_experts = spec.choice("shared_experts", {"tp", "replicated"})};
  if (options.ep > options.tp) {
    throw request_error(
        fmt::format("\"{}\": ep={} is more than tp={}", spec.text(), options.ep, options.tp),
        fmt::format("SGLang spreads the experts over its tp ranks: sglang:tp={0},ep={0}",
                    options.ep));
  }
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
  const ModelClass& model_class = class_of(config);
  const Options options = read(spec, config);
  check_instances(ranks, options.tp, options.pp, 1);
  const DTypeRules dtypes = DTypeRules::read(spec, config);
  check_model(spec, options, config);
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
      .head = options.dp_lm_head && class_of(config).splits_head_by_option ? one_replica : tp,
      .attention = class_of(config).attention_over_tp ? tp : one_replica,
      .dense_mlp = dense_mlp_of(config, options),
      .shared_experts = options.shared_experts == "tp"
                            ? Ways{options.tp, {"tp", "shared_experts=replicated"}}
                            : Ways{},
      .experts = {options.tp / options.ep, {options.ep > 1 ? "tp/ep" : "tp", "a larger ep"}},
      .fuse_shared_experts = options.fuse_shared,
      .fused_qkv_a = "fused_qkv_a_proj_with_mqa",
      .tied_head = model_class.tied_head,
      .moe_module = model_class.moe_module,
      .shared_module = model_class.shared_module,
      .pads_vocabulary_by_parts = true,
      .own_head = model_class.own_head,
      .head_everywhere = model_class.head_everywhere,
      .notes = notes_of(config, options)};
  return make_fused_layout(catalogue, std::move(engine), ranks);
}

}  // namespace awex
