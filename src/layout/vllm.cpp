#include "layout/vllm.hpp"

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "layout/fused.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

/// Minor releases of vLLM 0. Those between were read (0.12 to 0.31) or asked (0.32, 0.33).
constexpr uint32_t kOldest = 12;
constexpr uint32_t kNewest = 33;
/// The first whose experts are a module of their own (fused_moe/routed_experts.py): 0.23 has none.
constexpr uint32_t kRoutedExperts = 24;

/// The numbers of "0.25", "0.25.1" or "v0.25.1"; empty for anything else.
std::vector<uint32_t> numbers_of(std::string_view text) {
  if (text.starts_with('v')) text.remove_prefix(1);
  std::vector<uint32_t> numbers;
  const char* const end = text.data() + text.size();
  for (const char* at = text.data();; ++at) {
    const auto [stop, error] = std::from_chars(at, end, numbers.emplace_back());
    if (error != std::errc{} || numbers.size() > 3) return {};
    if (stop == end) return numbers.size() > 1 ? numbers : std::vector<uint32_t>{};
    if (*stop != '.') return {};
    at = stop;
  }
}

/// The minor release that the spec names: 25 of "0.25.1".
uint32_t read_version(const EngineSpec& spec) {
  const auto given = spec.text_of("version");
  if (!given) return kNewest;
  const auto numbers = numbers_of(*given);
  if (numbers.empty()) {
    throw request_error(
        fmt::format("\"{}\": version={} is no version of vLLM", spec.text(), *given),
        fmt::format("write it as 0.{} or 0.{}.0, as `vllm --version` does", kNewest, kNewest));
  }
  const bool is_zero = numbers[0] == 0;
  if (is_zero && numbers[1] >= kOldest && numbers[1] <= kNewest) return numbers[1];
  throw request_error(
      fmt::format("\"{}\": the layout of vLLM {} is not known, only that of 0.{} to 0.{}",
                  spec.text(), *given, kOldest, kNewest),
      is_zero && numbers[1] < kOldest
          ? fmt::format("use a vLLM of 0.{} or newer", kOldest)
          : fmt::format("version=0.{} has the newest names known: use that vLLM, or a newer "
                        "awex-colocate",
                        kNewest));
}

/// What vLLM's class of a family does in its own way (models/*.py of 0.32 and 0.33).
struct ModelClass {
  const char* family;
  /// It follows use_sequence_parallel_moe (config/parallel.py, with its default all2all_backend).
  bool sequence_parallel_moe = false;
  bool ends_everywhere = false;           ///< FusedEngine::ends_everywhere.
  bool needs_experts_everywhere = false;  ///< It ends with an error on a stage without experts.
  bool needs_tp_within_experts = false;   ///< It refuses a tp above the number of experts.
  bool ignores_head_dim = false;    ///< Heads share the hidden size, whatever the config says.
  bool ties_no_head = false;        ///< It has an lm_head of its own even where it is tied.
  bool quantises_routers = false;   ///< With fp8, unless the checkpoint's config forbids it.
  bool always_biased = false;       ///< Its q, k and v have biases whatever the config says.
  const char* moe_module = "mlp.";  ///< FusedEngine::moe_module.
  const char* shared_module = "shared_experts.";  ///< FusedEngine::shared_module.
};

constexpr ModelClass kClasses[] = {
    {.family = "llama"},
    {.family = "qwen2", .ignores_head_dim = true},
    {.family = "qwen3"},
    {.family = "qwen3_moe",
     .ends_everywhere = true,
     .needs_experts_everywhere = true,
     .needs_tp_within_experts = true,
     .quantises_routers = true},
    {.family = "deepseek_v3", .sequence_parallel_moe = true, .ties_no_head = true},
    {.family = "glm4_moe", .needs_experts_everywhere = true, .ties_no_head = true},
    {.family = "mistral"},
    {.family = "mixtral", .ends_everywhere = true, .moe_module = "block_sparse_moe."},
    {.family = "qwen2_moe",
     .ends_everywhere = true,
     .needs_tp_within_experts = true,
     .ignores_head_dim = true,
     .always_biased = true,
     .shared_module = "shared_expert."},
    {.family = "mimo", .ignores_head_dim = true},
    {.family = "glm4_moe_lite", .needs_experts_everywhere = true, .ties_no_head = true}};

/// Throws a request error where the engine has no such model.
const ModelClass& class_of(const ModelConfig& config) {
  for (const auto& known : kClasses) {
    if (config.family == known.family) return known;
  }
  throw request_error(
      fmt::format("vLLM (0.{}) has no class for models of type {}", kNewest, config.family),
      "hold it whole on every rank: hf");
}

struct Options {
  uint32_t tp = 1;
  uint32_t pp = 1;
  uint32_t dp = 1;
  bool ep = false;
  bool whole_by_default = false;  ///< The shared experts, as the engine has them.
  bool whole_shared_experts = false;
  uint32_t version = kNewest;
  bool deep_gemm = true;
  std::string moe_backend;
  bool stored_head = false;

  /// tp always, the others where they are not what they are by default.
  [[nodiscard]] std::string text() const {
    std::string text = fmt::format("vllm:tp={}", tp);
    if (pp > 1) text += fmt::format(",pp={}", pp);
    if (ep) text += ",ep=on";
    if (dp > 1) text += fmt::format(",dp={}", dp);
    if (whole_shared_experts != whole_by_default) {
      text += fmt::format(",shared_experts={}", whole_shared_experts ? "replicated" : "tp");
    }
    if (version != kNewest) text += fmt::format(",version=0.{}", version);
    if (!deep_gemm) text += ",deep_gemm=off";
    if (moe_backend != "auto") text += ",moe_backend=" + moe_backend;
    if (stored_head) text += ",stored_head=on";
    return text;
  }
};

/// vLLM's own option is a switch, unlike other engines'.
void check_is_switch(const EngineSpec& spec) {
  const auto ep = spec.text_of("ep");
  if (!ep || ep->empty() || ep->find_first_not_of("0123456789") != std::string::npos) return;
  throw request_error(
      fmt::format("\"{}\": ep={}, but vLLM's expert parallelism is on or off", spec.text(), *ep),
      fmt::format("it spreads the experts over all tp times dp ranks of a stage: "
                  "vllm:tp={},ep=on",
                  *ep));
}

Options read(const EngineSpec& spec, const ModelConfig& config) {
  spec.allow_only({"tp", "pp", "dp", "ep", "shared_experts", "version", "deep_gemm", "moe_backend",
                   "stored_head", "dtype", "router_dtype", "block"});
  check_is_switch(spec);
  Options options{.tp = spec.count("tp", 1),
                  .pp = spec.count("pp", 1),
                  .dp = spec.count("dp", 1),
                  .ep = spec.flag("ep", false),
                  .version = read_version(spec),
                  .deep_gemm = spec.flag("deep_gemm", true),
                  .moe_backend = spec.choice("moe_backend", {"auto", "triton"}),
                  .stored_head = spec.flag("stored_head", false)};
  options.whole_by_default =
      class_of(config).sequence_parallel_moe && options.ep && options.tp > 1 && options.dp > 1;
  const auto shared = spec.choice("shared_experts", {"tp", "replicated"});
  options.whole_shared_experts =
      spec.text_of("shared_experts") ? shared == "replicated" : options.whole_by_default;
  return options;
}

/// What vLLM makes of fp8 weights after it has loaded them, on a Hopper GPU
/// (quantization/utils/fp8_utils.py, fused_moe/oracle/fp8.py).
void check_raw_after_loading(const EngineSpec& spec, const Options& options, bool has_experts) {
  if (options.deep_gemm) {
    throw request_error(
        fmt::format("\"{}\": with DeepGEMM, its default on Hopper, vLLM requantises fp8 weights "
                    "after loading to scales that are powers of two and lays the scales out anew: "
                    "what is written as it was quantised would be read wrongly",
                    spec.text()),
        "start vLLM with VLLM_USE_DEEP_GEMM=0 and say so with deep_gemm=off, or leave dtype=fp8 "
        "out");
  }
  const bool shares_experts = has_experts && options.ep && options.tp * options.dp > 1;
  if (shares_experts && options.moe_backend != "triton") {
    throw request_error(
        fmt::format("\"{}\": with ep=on vLLM prefers a kernel (flashinfer_cutlass) for which it "
                    "swaps the gate and up halves of fp8 experts after loading",
                    spec.text()),
        "start vLLM with --moe-backend triton and say so with moe_backend=triton, or leave "
        "dtype=fp8 out");
  }
}

/// distributed/utils.py, get_pp_indices: a remainder goes to the stages before the last.
std::vector<Range> stages_of(const ModelConfig& config, uint32_t pp) {
  const uint32_t before_last = pp - 1;
  return split_layers(config.layers, pp, {before_last - config.layers % pp, before_last});
}

/// The first stage whose layers are all dense; as many as there are stages if there is none.
size_t first_dense_stage(const ModelConfig& config, const std::vector<Range>& stages) {
  const auto is_dense = [&](const Range& layers) {
    for (uint64_t layer = layers.begin; layer < layers.end; ++layer) {
      if (config.is_moe_layer(layer)) return false;
    }
    return true;
  };
  return std::find_if(stages.begin(), stages.end(), is_dense) - stages.begin();
}

void check_experts_everywhere(const EngineSpec& spec, const ModelConfig& config,
                              const std::vector<Range>& stages) {
  if (!class_of(config).needs_experts_everywhere) return;
  const size_t stage = first_dense_stage(config, stages);
  if (stage == stages.size()) return;
  auto fitting = narrow<uint32_t>(stages.size());
  while (fitting > 0 && first_dense_stage(config, stages_of(config, fitting)) < fitting) --fitting;
  throw request_error(
      fmt::format("\"{}\": layers {} to {}, stage {} of {}, have no experts: vLLM's class of this "
                  "model ends with an error on such a stage",
                  spec.text(), stages[stage].begin, stages[stage].end - 1, stage, stages.size()),
      fitting > 0 ? fmt::format("pp={} is the largest that leaves experts to every stage", fitting)
                  : "no layer of this model has experts: vLLM cannot serve it as what it is");
}

/// What vLLM's class of the model does not take, or builds otherwise than config.json says.
void check_model(const EngineSpec& spec, const Options& options, const ModelConfig& config) {
  const ModelClass& model_class = class_of(config);
  if (model_class.ignores_head_dim && config.head_dim * config.heads != config.hidden) {
    throw request_error(
        fmt::format(
            "\"{}\": vLLM's class of {} takes hidden_size / num_attention_heads = {} / {} for the "
            "size of a head and ignores head_dim = {}: it would load other weights",
            spec.text(), config.family, config.hidden, config.heads, config.head_dim),
        "serve this model with sglang");
  }
  if (model_class.always_biased && !config.attention_bias) {
    throw request_error(
        fmt::format("\"{}\": vLLM's class of {} has biases of q, k and v, this model has none "
                    "(qkv_bias)",
                    spec.text(), config.family),
        "serve this model with sglang");
  }
  if (model_class.needs_tp_within_experts && options.tp > config.experts) {
    throw request_error(fmt::format("\"{}\": vLLM's class of {} refuses a tp above the {} experts",
                                    spec.text(), config.family, config.experts),
                        fmt::format("use a tp of at most {}", config.experts));
  }
  if (config.tied_embeddings && model_class.ties_no_head) {
    throw request_error(
        fmt::format(
            "\"{}\": tie_word_embeddings is true, but vLLM's class of this model builds an lm_head "
            "of "
            "its own, and what the checkpoint stores decides whether vLLM ties it after loading",
            spec.text()),
        "untie the head: tie_word_embeddings false in config.json, and lm_head.weight stored");
  }
  if (options.stored_head && !config.tied_embeddings) {
    throw request_error(
        fmt::format("\"{}\": stored_head=on is for tied heads, this model's is not", spec.text()),
        "leave stored_head out");
  }
}

/// vLLM 0.32: ModelConfig::maybe_untie_word_embeddings for heads; for latent attention
/// layers/attention/mla_attention.py, whose W_UV and W_UK_T are views of kv_b_proj unless it is
/// fp8.
std::vector<std::string> notes_of(const ModelConfig& config, const Options& options, bool is_fp8) {
  std::vector<std::string> notes;
  if (config.is_mla() && is_fp8) {
    notes.emplace_back(
        "with dtype=fp8 vLLM computes with dequantised copies of kv_b_proj (W_UV, W_UK_T): call "
        "process_weights_after_loading(dtype) of every MLAAttention after every update, or it "
        "serves old attention weights");
  }
  if (class_of(config).quantises_routers && is_fp8) {
    notes.emplace_back(
        "with dtype=fp8 vLLM's class of this model holds routers in fp8 too, unless "
        "modules_to_not_convert "
        "in "
        "its checkpoint's config.json names every mlp.gate");
  }
  if (config.tied_embeddings && options.pp > 1 && !class_of(config).ends_everywhere &&
      !options.stored_head) {
    notes.emplace_back(
        "where the checkpoint that vLLM loads stores a tied lm_head.weight nevertheless, newer "
        "vLLM (0.32) has it by this name on the last stage: then say stored_head=on");
  }
  return notes;
}

}  // namespace

std::unique_ptr<Layout> make_vllm_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                         uint32_t ranks) {
  const ModelConfig& config = catalogue.config();
  const Options options = read(spec, config);
  const auto dtypes = DTypeRules::read(spec, config);
  const bool is_fp8 = dtypes.main == DType::kF8E4M3;
  if (is_fp8) check_raw_after_loading(spec, options, config.experts > 0);
  check_instances(ranks, options.tp, options.pp, options.dp);
  check_model(spec, options, config);
  const Ways tp{options.tp, {"tp"}};
  const Ways flat{options.tp * options.dp, {options.dp > 1 ? "dp*tp" : "tp", "ep=on"}};
  const std::vector<Range> stages = stages_of(config, options.pp);
  check_experts_everywhere(spec, config, stages);
  FusedEngine engine{
      .spec = options.text() + dtypes.text(),
      .tp = options.tp,
      .dp = options.dp,
      .stages = stages,
      .embedding = tp,
      .head = tp,
      .attention = tp,
      .dense_mlp = tp,
      .shared_experts = options.whole_shared_experts
                            ? Ways{}
                            : Ways{options.tp, {"tp", "shared_experts=replicated"}},
      .experts = options.ep ? Ways{} : flat,
      .fused_qkv_a = "fused_qkv_a_proj",
      .tied_head = options.stored_head ? "lm_head.weight" : "model.embed_tokens.weight",
      .moe_module = class_of(config).moe_module,
      .experts_module = options.version >= kRoutedExperts ? "experts.routed_experts." : "experts.",
      .shared_module = class_of(config).shared_module,
      .ends_everywhere = class_of(config).ends_everywhere,
      .notes = notes_of(config, options, is_fp8)};
  return make_fused_layout(catalogue, std::move(engine), ranks);
}

}  // namespace awex
