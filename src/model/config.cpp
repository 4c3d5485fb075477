#include "model/config.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxSize = 1U << 24;  ///< Of every single field; sums are bounded apart.
constexpr double kMaxElements = 0x1p56;
constexpr double kMaxTensors = 1e6;

struct KnownArchitecture {
  Architecture architecture;
  const char* class_name;
  const char* model_type;
};

/// One entry an architecture, in the order of the enumeration, then other names of model types.
constexpr std::array<KnownArchitecture, 7> kKnown{
    {{Architecture::kLlama, "LlamaForCausalLM", "llama"},
     {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2"},
     {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3"},
     {Architecture::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe"},
     {Architecture::kDeepseekV3, "DeepseekV3ForCausalLM", "deepseek_v3"},
     {Architecture::kGlm4Moe, "Glm4MoeForCausalLM", "glm4_moe"},
     {Architecture::kDeepseekV3, "DeepseekV3ForCausalLM", "kimi_k2"}}};

constexpr const char* kKnownHint =
    "supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
    "DeepseekV3ForCausalLM, Glm4MoeForCausalLM";

/// The only router of DeepSeek-V3 and GLM-4.5: sigmoid scores with e_score_correction_bias.
constexpr const char* kRouterMethod = "noaux_tc";

struct KnownDType {
  DType dtype;
  const char* name;
};

/// The name that we write first, then the others that torch knows.
constexpr std::array<KnownDType, 5> kKnownDTypes{{{DType::kBf16, "bfloat16"},
                                                  {DType::kF16, "float16"},
                                                  {DType::kF32, "float32"},
                                                  {DType::kF16, "half"},
                                                  {DType::kF32, "float"}}};

/// The names of a field in transformers 4, 5 (its classes' attribute_map) and remote code.
using Names = std::initializer_list<const char*>;
constexpr Names kExpertNames = {"num_experts", "num_local_experts", "n_routed_experts"};
constexpr Names kMtpNames = {"num_nextn_predict_layers", "num_mtp_layers"};

/// A config.json's fields, with errors that name field, value and file. null counts as absent, as
/// it does for transformers. Keeps a list of the defaults that it gave.
class Fields {
 public:
  Fields(const json& object, const std::string& file) : object_(object), file_(file) {
    if (!object.is_object()) throw request_error(file + ": must be a JSON object");
  }

  [[nodiscard]] const std::string& file() const { return file_; }

  [[nodiscard]] const json* find(const char* field) const {
    const auto at = object_.find(field);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }

  [[noreturn]] void refuse(const char* field, const std::string& why,
                           const std::string& hint = {}) const {
    const auto* value = find(field);
    throw request_error(fmt::format("{}: \"{}\" is {}; {}", file_, field,
                                    value == nullptr ? "missing" : shown(*value), why),
                        hint);
  }

  [[nodiscard]] bool is_null(const char* field) const {
    const auto at = object_.find(field);
    return at != object_.end() && at->is_null();
  }

  /// The one of a field's names that the file uses, or else `usual`. Two that differ are refused.
  [[nodiscard]] const char* name_of(const char* usual, Names names) const {
    const char* used = find(usual) != nullptr ? usual : nullptr;
    for (const char* name : names) {
      if (find(name) == nullptr) continue;
      if (used == nullptr) used = name;
      if (*find(name) == *find(used)) continue;
      refuse(name, fmt::format("that contradicts \"{}\", which is {}", used, shown(*find(used))));
    }
    return used != nullptr ? used : usual;
  }

  /// " (its default: "field" is missing)" where a value that a message names is not the user's.
  [[nodiscard]] std::string origin(const char* field) const {
    return find(field) != nullptr
               ? ""
               : fmt::format(" (transformers' default: \"{}\" is missing)", field);
  }

  void assume(const char* field, std::string value) const {
    assumed_.push_back({field, std::move(value)});
  }
  [[nodiscard]] std::vector<AssumedField> assumed() const { return assumed_; }

  /// A whole number in [least, most].
  [[nodiscard]] uint64_t number(const char* field, std::optional<uint64_t> absent = std::nullopt,
                                uint64_t most = kMaxSize, uint64_t least = 1) const {
    const auto* value = find(field);
    if (value == nullptr && absent) {
      assume(field, fmt::to_string(*absent));
      return *absent;
    }
    if (value == nullptr || !value->is_number_unsigned() || value->get<uint64_t>() < least ||
        value->get<uint64_t>() > most) {
      refuse(field, fmt::format("it must be a whole number from {} to {}", least, most));
    }
    return value->get<uint64_t>();
  }

  /// A number of which null says that the model does without, and is 0 here.
  [[nodiscard]] uint64_t number_or_null(const char* field, uint64_t absent) const {
    return is_null(field) ? 0 : number(field, absent);
  }

  [[nodiscard]] bool flag(const char* field) const {
    const auto* value = find(field);
    if (value == nullptr) return false;
    if (!value->is_boolean()) refuse(field, "it must be true or false");
    return value->get<bool>();
  }

  [[nodiscard]] std::optional<std::string> text(const char* field) const {
    const auto* value = find(field);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(field, "it must be a string");
    return value->get<std::string>();
  }

 private:
  const json& object_;
  const std::string& file_;
  mutable std::vector<AssumedField> assumed_;
};

std::optional<Architecture> architecture_by_class(const Fields& fields) {
  const auto* list = fields.find("architectures");
  if (list == nullptr) return std::nullopt;
  if (list->is_array() && list->size() == 1 && list->front().is_string()) {
    std::string_view name = list->front().get_ref<const std::string&>();
    // Some releases write the name that FSDP gives the class that it wraps.
    if (name.starts_with("FSDP")) name.remove_prefix(4);
    for (const auto& known : kKnown) {
      if (name == known.class_name) return known.architecture;
    }
  }
  fields.refuse("architectures", "it must hold one supported architecture", kKnownHint);
}

std::optional<Architecture> architecture_by_type(const Fields& fields) {
  const auto type = fields.text("model_type");
  if (!type) return std::nullopt;
  for (const auto& known : kKnown) {
    if (*type == known.model_type) return known.architecture;
  }
  fields.refuse("model_type", "this type is not supported", kKnownHint);
}

Architecture read_architecture(const Fields& fields) {
  const auto by_class = architecture_by_class(fields);
  const auto by_type = architecture_by_type(fields);
  if (!by_class && !by_type) fields.refuse("architectures", "the file must tell the architecture");
  if (by_class && by_type && *by_class != *by_type) {
    fields.refuse("model_type", fmt::format("that contradicts \"architectures\", which is {}",
                                            shown(*fields.find("architectures"))));
  }
  return by_class ? *by_class : *by_type;
}

/// transformers 4 writes torch_dtype, transformers 5 dtype; of both it takes dtype. Nothing where
/// the file leaves it open.
std::optional<DType> read_dtype(const Fields& fields) {
  const char* field = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const auto text = fields.text(field);
  if (!text || *text == "auto") return std::nullopt;
  std::string_view name = *text;
  constexpr std::string_view kModule = "torch.";
  if (name.starts_with(kModule)) name.remove_prefix(kModule.size());
  if (name.starts_with("float8_e4m3")) return std::nullopt;
  for (const auto& known : kKnownDTypes) {
    if (name == known.name) return known.dtype;
  }
  fields.refuse(field, "it must be bfloat16, float16 or float32");
}

/// What transformers takes when the field is absent (its configuration_*.py).
uint64_t default_kv_heads(Architecture architecture, uint64_t heads) {
  switch (architecture) {
    case Architecture::kLlama:
    case Architecture::kDeepseekV3:
      return heads;
    case Architecture::kQwen2:
    case Architecture::kQwen3:
      return 32;
    case Architecture::kQwen3Moe:
      return 4;
    case Architecture::kGlm4Moe:
      return 8;
  }
  __builtin_unreachable();
}

/// num_key_value_heads and head_dim say nothing about the weights of latent attention.
void read_latent_attention(const Fields& fields, ModelConfig& config) {
  config.kv_heads = config.heads;
  config.q_lora_rank = fields.number_or_null("q_lora_rank", 1536);
  config.kv_lora_rank = fields.number("kv_lora_rank", 512);
  config.qk_nope_head_dim = fields.number("qk_nope_head_dim", 128);
  config.qk_rope_head_dim = fields.number("qk_rope_head_dim", 64);
  config.v_head_dim = fields.number("v_head_dim", 128);
}

void read_grouped_attention(const Fields& fields, ModelConfig& config) {
  constexpr const char* kKvHeads = "num_key_value_heads";
  config.kv_heads =
      fields.is_null(kKvHeads)
          ? config.heads
          : fields.number(kKvHeads, default_kv_heads(config.architecture, config.heads));
  if (config.heads % config.kv_heads != 0) {
    fields.refuse("num_attention_heads", fmt::format("it must be a multiple of the {} KV heads{}",
                                                     config.kv_heads, fields.origin(kKvHeads)));
  }
  const bool is_qwen3 = config.architecture == Architecture::kQwen3;
  if (fields.find("head_dim") == nullptr && !is_qwen3 && config.hidden % config.heads != 0) {
    fields.refuse("head_dim",
                  fmt::format("and \"hidden_size\" {} is no multiple of \"num_attention_"
                              "heads\" {}",
                              config.hidden, config.heads));
  }
  config.head_dim = fields.number("head_dim", is_qwen3 ? 128 : config.hidden / config.heads);
}

void read_attention(const Fields& fields, ModelConfig& config) {
  config.heads = fields.number("num_attention_heads");
  if (config.architecture == Architecture::kDeepseekV3) {
    read_latent_attention(fields, config);
  } else {
    read_grouped_attention(fields, config);
  }
}

bool read_qk_norm(const Fields& fields, Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
    case Architecture::kQwen2:
    case Architecture::kDeepseekV3:
      return false;
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe:
      return true;
    case Architecture::kGlm4Moe:
      return fields.flag("use_qk_norm");
  }
  __builtin_unreachable();
}

/// Whether q, k and v have a bias: always in Qwen2, in GLM-4.5 if attention_bias says so. In the
/// other architectures attention_bias puts one on o_proj too, and no engine layout here has a place
/// for it.
bool read_attention_bias(const Fields& fields, Architecture architecture) {
  switch (architecture) {
    case Architecture::kQwen2:
      return true;
    case Architecture::kGlm4Moe:
      return fields.flag("attention_bias");
    case Architecture::kLlama:
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe:
    case Architecture::kDeepseekV3:
      break;
  }
  for (const char* field : {"attention_bias", "mlp_bias"}) {
    if (!fields.flag(field)) continue;
    fields.refuse(field, "models with a bias on o_proj or the MLP are not supported");
  }
  return false;
}

/// The name that transformers 4 writes.
const char* experts_field(Architecture architecture) {
  return architecture == Architecture::kQwen3Moe ? "num_experts" : "n_routed_experts";
}

/// The name that this file uses.
const char* experts_field(const Fields& fields, Architecture architecture) {
  return fields.name_of(experts_field(architecture), kExpertNames);
}

std::set<uint64_t> read_mlp_only_layers(const Fields& fields, uint64_t layers) {
  const auto* list = fields.find("mlp_only_layers");
  if (list == nullptr) return {};
  std::set<uint64_t> result;
  bool valid = list->is_array();
  for (const auto& layer : valid ? *list : json::array()) {
    valid = valid && layer.is_number_unsigned() && layer.get<uint64_t>() < layers &&
            result.insert(layer.get<uint64_t>()).second;
  }
  if (!valid) {
    fields.refuse("mlp_only_layers",
                  fmt::format("it must list different layers of the {} there are", layers));
  }
  return result;
}

void read_qwen3_experts(const Fields& fields, ModelConfig& config) {
  config.experts = fields.number(experts_field(fields, config.architecture), 128);
  config.moe_intermediate = fields.number("moe_intermediate_size", 768);
  config.decoder_sparse_step = fields.number("decoder_sparse_step", 1);
  config.mlp_only_layers = read_mlp_only_layers(fields, config.layers);
}

/// The layers without experts that "mlp_layer_types" lists, where the file has it: newer classes of
/// transformers say so what first_k_dense_replace said.
std::optional<std::set<uint64_t>> read_dense_layers(const Fields& fields, uint64_t layers) {
  constexpr const char* kField = "mlp_layer_types";
  const auto* list = fields.find(kField);
  if (list == nullptr) return std::nullopt;
  std::set<uint64_t> dense;
  bool valid = list->is_array() && list->size() == layers;
  for (uint64_t layer = 0; valid && layer < layers; ++layer) {
    if ((*list)[layer] == "dense") dense.insert(layer);
    valid = (*list)[layer] == "dense" || (*list)[layer] == "sparse";
  }
  if (!valid) {
    fields.refuse(
        kField,
        fmt::format("it must say \"dense\" or \"sparse\" of each of the {} layers", layers));
  }
  return dense;
}

/// Dense layers lead, so their number says all.
uint64_t read_first_dense(const Fields& fields, uint64_t layers, uint64_t absent) {
  constexpr const char* kField = "first_k_dense_replace";
  const auto dense = read_dense_layers(fields, layers);
  if (!dense) return fields.number(kField, absent, kMaxSize, 0);
  const uint64_t count = dense->size();
  if (count > 0 && *dense->rbegin() != count - 1) {
    fields.refuse("mlp_layer_types", "dense layers behind sparse ones are not supported");
  }
  if (fields.find(kField) != nullptr &&
      std::min(fields.number(kField, absent, kMaxSize, 0), layers) != count) {
    fields.refuse(kField, fmt::format("that contradicts \"mlp_layer_types\", which begins with {} "
                                      "dense layers",
                                      count));
  }
  return count;
}

/// What transformers takes when the field is absent (its configuration_*.py).
struct SharedExpertDefaults {
  uint64_t experts;
  uint64_t moe_intermediate;
  uint64_t first_k_dense_replace;
};

/// DeepSeek-V3, Kimi-K2 and GLM-4.5.
void read_experts_beside_shared(const Fields& fields, ModelConfig& config,
                                const SharedExpertDefaults& absent) {
  config.experts = fields.number(experts_field(fields, config.architecture), absent.experts);
  config.moe_intermediate = fields.number("moe_intermediate_size", absent.moe_intermediate);
  config.shared_experts = fields.number_or_null("n_shared_experts", 1);
  config.has_score_correction_bias = true;
  config.first_k_dense_replace =
      read_first_dense(fields, config.layers, absent.first_k_dense_replace);
  config.mtp_layers =
      fields.number(fields.name_of("num_nextn_predict_layers", kMtpNames), 0, kMaxSize, 0);
  if (fields.number("moe_layer_freq", 1) != 1) {
    fields.refuse("moe_layer_freq", "it must be 1, experts in every layer after the dense ones");
  }
  if (fields.text("topk_method").value_or(kRouterMethod) != kRouterMethod) {
    fields.refuse("topk_method",
                  fmt::format("only the router \"{}\", which has e_score_correction_bias, is "
                              "supported",
                              kRouterMethod));
  }
}

void read_experts(const Fields& fields, ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::kLlama:
    case Architecture::kQwen2:
    case Architecture::kQwen3:
      return;
    case Architecture::kQwen3Moe:
      read_qwen3_experts(fields, config);
      break;
    case Architecture::kDeepseekV3:
      read_experts_beside_shared(fields, config, {256, 2048, 3});
      break;
    case Architecture::kGlm4Moe:
      read_experts_beside_shared(fields, config, {128, 1408, 1});
      break;
  }
  config.experts_per_token = fields.number("num_experts_per_tok", 8);
  if (config.experts_per_token <= config.experts) return;
  const bool is_given = fields.find("num_experts_per_tok") != nullptr;
  fields.refuse(
      "num_experts_per_tok",
      fmt::format(
          "{} must not exceed the {} experts{}",
          is_given ? "it" : fmt::format("transformers' default of {}", config.experts_per_token),
          config.experts, fields.origin(experts_field(fields, config.architecture))));
}

constexpr const char* kUnquantised = "use the checkpoint in bfloat16 that it was made from";

/// weight_block_size, where it is given.
void read_blocks(const Fields& fields, const json& quantisation, CheckpointConfig& config) {
  const auto size = quantisation.find("weight_block_size");
  if (size == quantisation.end() || size->is_null()) return;
  bool valid = size->is_array() && size->size() == 2;
  for (const auto& extent : valid ? *size : json::array()) {
    valid = valid && extent.is_number_unsigned() && extent.get<uint64_t>() >= 1 &&
            extent.get<uint64_t>() <= kMaxSize;
  }
  if (!valid) {
    fields.refuse("quantization_config",
                  "its \"weight_block_size\" must be two whole numbers, as [128, 128]");
  }
  config.block_rows = (*size)[0].get<uint64_t>();
  config.block_cols = (*size)[1].get<uint64_t>();
}

/// Of all quantisations only fp8 with a scale for each block is known: that of DeepSeek-V3, Kimi-K2
/// and Qwen3-FP8.
void read_quantisation(const Fields& fields, CheckpointConfig& config) {
  if (fields.find("compression_config") != nullptr) {
    fields.refuse("compression_config", "compressed-tensors checkpoints are not supported",
                  kUnquantised);
  }
  if (fields.find("quantization") != nullptr) {
    fields.refuse("quantization", "quantised MLX checkpoints are not supported", kUnquantised);
  }
  constexpr const char* kField = "quantization_config";
  const auto* quantisation = fields.find(kField);
  if (quantisation == nullptr) return;
  if (!quantisation->is_object()) fields.refuse(kField, "it must be an object");
  const Fields inner(*quantisation, fields.file());
  const auto method = inner.text("quant_method");
  if (!method) {
    fields.refuse(kField, "it does not name its \"quant_method\"", kUnquantised);
  }
  if (*method != "fp8") {
    fields.refuse(kField,
                  fmt::format("{} checkpoints are not supported, of quantised ones only fp8 with a "
                              "scale for each block",
                              in_quotes(*method)),
                  kUnquantised);
  }
  const auto format = inner.text("fmt").value_or("e4m3");
  if (format != "e4m3" && format != "float8_e4m3fn") {
    fields.refuse(kField, fmt::format("fp8 is read as e4m3, not as {}", in_quotes(format)),
                  kUnquantised);
  }
  config.is_fp8 = true;
  read_blocks(fields, *quantisation, config);
}

double real(uint64_t value) { return static_cast<double>(value); }

/// Bounds a layer's attention from above, with biases and norms.
double attention_elements(const ModelConfig& config) {
  const double hidden = real(config.hidden);
  const double heads = real(config.heads);
  if (!config.is_mla()) {
    return 3 * hidden * real(config.heads + 2 * config.kv_heads) * real(config.head_dim);
  }
  const double q_rows = heads * real(config.qk_nope_head_dim + config.qk_rope_head_dim);
  const double kv_rows = heads * real(config.qk_nope_head_dim + config.v_head_dim);
  const double q_rank = real(config.q_lora_rank);
  const double kv_rank = real(config.kv_lora_rank);
  const double q = config.q_lora_rank == 0 ? q_rows * hidden : q_rank * (hidden + 1 + q_rows);
  const double kv = (kv_rank + real(config.qk_rope_head_dim)) * hidden + kv_rank * (1 + kv_rows);
  return q + kv + hidden * heads * real(config.v_head_dim);
}

/// The number of experts as a part of a message; empty for a dense model.
std::string experts_of(const ModelConfig& config, const Fields& fields) {
  if (config.experts == 0) return {};
  const char* field = experts_field(fields, config.architecture);
  return fmt::format("\"{}\" {}{}, ", field, config.experts, fields.origin(field));
}

/// Bounds from above, in floating point so that they cannot overflow themselves.
void check_total(const ModelConfig& config, const Fields& fields) {
  const double layers = real(config.layers);
  const double hidden = real(config.hidden);
  const double experts = real(config.experts);
  const double mlp_rows = real(config.intermediate) +
                          (experts + real(config.shared_experts)) * real(config.moe_intermediate);
  const double router = experts * (hidden + 1);
  const double layer = attention_elements(config) + 3 * hidden * mlp_rows + router + 2 * hidden;
  const double tensors = 3 + layers * (16 + 3 * experts);
  const double elements = hidden * (2 * real(config.vocab) + 1) + layers * layer;
  if (tensors <= kMaxTensors && elements <= kMaxElements) return;
  throw request_error(
      fmt::format("{}: the sizes cannot be right: \"num_hidden_layers\" {}, {}"
                  "\"hidden_size\" {}, \"vocab_size\" {} and the others give about {:.3g} tensors "
                  "of {:.3g} elements",
                  fields.file(), config.layers, experts_of(config, fields), config.hidden,
                  config.vocab, tensors, elements),
      "at most a million tensors of 2^56 elements in all are possible");
}

const KnownArchitecture& known(Architecture architecture) {
  return kKnown.at(static_cast<size_t>(architecture));
}

const char* dtype_in_config(DType dtype) {
  for (const auto& candidate : kKnownDTypes) {
    if (candidate.dtype == dtype) return candidate.name;
  }
  throw runtime_error(fmt::format("no config.json can say dtype {}", dtype_name(dtype)));
}

using OrderedJson = nlohmann::ordered_json;

OrderedJson null_if_zero(uint64_t value) { return value == 0 ? OrderedJson() : OrderedJson(value); }

void add_attention(OrderedJson& object, const ModelConfig& config) {
  if (config.is_mla()) {
    object["q_lora_rank"] = null_if_zero(config.q_lora_rank);
    object["kv_lora_rank"] = config.kv_lora_rank;
    object["qk_nope_head_dim"] = config.qk_nope_head_dim;
    object["qk_rope_head_dim"] = config.qk_rope_head_dim;
    object["v_head_dim"] = config.v_head_dim;
  } else {
    object["head_dim"] = config.head_dim;
  }
  if (config.architecture == Architecture::kGlm4Moe) {
    object["attention_bias"] = config.attention_bias;
    object["use_qk_norm"] = config.qk_norm;
  }
}

void add_experts(OrderedJson& object, const ModelConfig& config) {
  if (config.experts == 0) return;
  object[experts_field(config.architecture)] = config.experts;
  object["num_experts_per_tok"] = config.experts_per_token;
  object["moe_intermediate_size"] = config.moe_intermediate;
  if (config.architecture == Architecture::kQwen3Moe) {
    object["decoder_sparse_step"] = config.decoder_sparse_step;
    object["mlp_only_layers"] = config.mlp_only_layers;
    return;
  }
  object["n_shared_experts"] = null_if_zero(config.shared_experts);
  object["first_k_dense_replace"] = config.first_k_dense_replace;
  object["num_nextn_predict_layers"] = config.mtp_layers;
  // A config does not keep how tokens are routed, but engines read these fields without a default,
  // or with one that fits DeepSeek-V3 alone; a single group fits any number of experts.
  object["moe_layer_freq"] = 1;
  object["topk_method"] = kRouterMethod;
  object["scoring_func"] = "sigmoid";
  object["n_group"] = 1;
  object["topk_group"] = 1;
}

}  // namespace

bool ModelConfig::is_moe_layer(uint64_t layer) const {
  return experts > 0 && layer >= first_k_dense_replace && !mlp_only_layers.contains(layer) &&
         (layer + 1) % decoder_sparse_step == 0;
}

std::string CheckpointConfig::assumptions() const {
  std::string list;
  for (const auto& field : assumed) {
    list +=
        fmt::format("{}\"{}\" (taken as {})", list.empty() ? "" : ", ", field.name, field.value);
  }
  return list.empty() ? "" : "config.json leaves out " + list;
}

CheckpointConfig parse_checkpoint_config(std::string_view json_text, const std::string& file) {
  const auto object = parse_json(json_text, file);
  const Fields fields(object, file);
  CheckpointConfig result;
  read_quantisation(fields, result);
  auto& config = result.model;
  config.architecture = read_architecture(fields);
  const auto dtype = read_dtype(fields);
  result.names_dtype = dtype.has_value();
  config.dtype = dtype.value_or(DType::kBf16);
  config.layers = fields.number("num_hidden_layers", std::nullopt, 1'000'000);
  config.hidden = fields.number("hidden_size");
  config.intermediate = fields.number("intermediate_size");
  config.vocab = fields.number("vocab_size");
  config.tied_embeddings = fields.flag("tie_word_embeddings");
  if (fields.find("tie_word_embeddings") == nullptr) fields.assume("tie_word_embeddings", "false");
  config.qk_norm = read_qk_norm(fields, config.architecture);
  config.attention_bias = read_attention_bias(fields, config.architecture);
  read_attention(fields, config);
  read_experts(fields, config);
  check_total(config, fields);
  result.assumed = fields.assumed();
  return result;
}

ModelConfig parse_config(std::string_view json_text, const std::string& file) {
  return parse_checkpoint_config(json_text, file).model;
}

std::string config_to_json(const ModelConfig& config) {
  OrderedJson object{
      {"architectures", {known(config.architecture).class_name}},
      {"model_type", known(config.architecture).model_type},
      {"torch_dtype", dtype_in_config(config.dtype)},
      {"num_hidden_layers", config.layers},
      {"hidden_size", config.hidden},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv_heads},
      {"intermediate_size", config.intermediate},
      {"vocab_size", config.vocab},
      {"tie_word_embeddings", config.tied_embeddings},
  };
  add_attention(object, config);
  add_experts(object, config);
  return object.dump(2) + "\n";
}

ModelConfig keep_first_layers(ModelConfig config, uint64_t layers, const std::string& model) {
  if (layers == 0 || layers > config.layers) {
    throw request_error(fmt::format("--layers {}: {} has {} layers", layers, model, config.layers),
                        fmt::format("keep 1 to {} layers", config.layers));
  }
  config.layers = layers;
  config.mtp_layers = 0;
  config.mlp_only_layers.erase(config.mlp_only_layers.lower_bound(layers),
                               config.mlp_only_layers.end());
  return config;
}

}  // namespace awex
