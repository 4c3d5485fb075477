#include "model/config.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "model/config_fields.hpp"
#include "model/families/blocks.hpp"
#include "model/families/family.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

using nlohmann::json;

constexpr double kMaxElements = 0x1p56;
constexpr double kMaxTensors = 1e6;

/// The classes that there are, for hints.
std::string known_classes() {
  std::vector<std::string> names;
  for (const auto& family : families()) names.push_back(family.class_name);
  return fmt::format("supported: {}", fmt::join(names, ", "));
}

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

/// nullptr where the file does not name it.
const Family* family_by_class(const ConfigFields& fields) {
  const auto* list = fields.find("architectures");
  if (list == nullptr) return nullptr;
  if (list->is_array() && list->size() == 1 && list->front().is_string()) {
    std::string_view name = list->front().get_ref<const std::string&>();
    // Some releases write the name that FSDP gives the class that it wraps.
    if (name.starts_with("FSDP")) name.remove_prefix(4);
    for (const auto& family : families()) {
      if (name == family.class_name) return &family;
    }
  }
  fields.refuse("architectures", "it must hold one supported architecture", known_classes());
}

const Family* family_by_type(const ConfigFields& fields) {
  const auto type = fields.text("model_type");
  if (!type) return nullptr;
  for (const auto& family : families()) {
    const auto& others = family.other_types;
    if (*type == family.name || std::find(others.begin(), others.end(), *type) != others.end()) {
      return &family;
    }
  }
  fields.refuse("model_type", "this type is not supported", known_classes());
}

/// The language part of a model of several modalities lies in an object of its own.
void refuse_modalities(const ConfigFields& fields) {
  if (fields.find("num_hidden_layers") != nullptr) return;
  for (const char* part : {"text_config", "llm_config", "language_config", "thinker_config"}) {
    const auto* inner = fields.find(part);
    if (inner == nullptr || !inner->is_object()) continue;
    throw request_error(
        fmt::format("{}: models of several modalities, whose language model \"{}\" describes, are "
                    "not supported",
                    fields.file(), part),
        "save the language model alone, with a config.json and tensor names of its own");
  }
}

const Family& read_family(const ConfigFields& fields) {
  const auto* by_class = family_by_class(fields);
  const auto* by_type = family_by_type(fields);
  const auto* family = by_class != nullptr ? by_class : by_type;
  if (family == nullptr) fields.refuse("architectures", "the file must tell the architecture");
  if (by_type != nullptr && by_type != family) {
    fields.refuse("model_type", fmt::format("that contradicts \"architectures\", which is {}",
                                            shown(*fields.find("architectures"))));
  }
  return *family;
}

/// transformers 4 writes torch_dtype, transformers 5 dtype; of both it takes dtype. Nothing where
/// the file leaves it open.
std::optional<DType> read_dtype(const ConfigFields& fields) {
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

constexpr const char* kUnquantised = "use the checkpoint in bfloat16 that it was made from";

/// weight_block_size, where it is given.
void read_blocks(const ConfigFields& fields, const json& quantisation, CheckpointConfig& config) {
  const auto size = quantisation.find("weight_block_size");
  if (size == quantisation.end() || size->is_null()) return;
  bool valid = size->is_array() && size->size() == 2;
  for (const auto& extent : valid ? *size : json::array()) {
    valid = valid && extent.is_number_unsigned() && extent.get<uint64_t>() >= 1 &&
            extent.get<uint64_t>() <= kMaxField;
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
void read_quantisation(const ConfigFields& fields, CheckpointConfig& config) {
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
  const ConfigFields inner(*quantisation, fields.file());
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
std::string experts_of(const ModelConfig& config, const ConfigFields& fields) {
  if (config.experts == 0) return {};
  const char* field = experts_field(fields, config);
  return fmt::format("\"{}\" {}{}, ", field, config.experts, fields.origin(field));
}

/// Bounds from above, in floating point so that they cannot overflow themselves.
void check_total(const ModelConfig& config, const ConfigFields& fields) {
  const double layers = real(config.layers);
  const double hidden = real(config.hidden);
  const double experts = real(config.experts);
  const double shared = std::max(real(config.shared_intermediate),
                                 real(config.shared_experts) * real(config.moe_intermediate));
  const double mlp_rows =
      real(config.intermediate) + experts * real(config.moe_intermediate) + shared;
  const double router = (experts + 1) * (hidden + 1);
  const double layer = attention_elements(config) + 3 * hidden * mlp_rows + router + 2 * hidden;
  const double tensors = 3 + layers * (18 + 3 * experts);
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

const char* dtype_in_config(DType dtype) {
  for (const auto& candidate : kKnownDTypes) {
    if (candidate.dtype == dtype) return candidate.name;
  }
  throw runtime_error(fmt::format("no config.json can say dtype {}", dtype_name(dtype)));
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
  const ConfigFields fields(object, file);
  CheckpointConfig result;
  refuse_modalities(fields);
  read_quantisation(fields, result);
  auto& config = result.model;
  const Family& family = read_family(fields);
  config.family = family.name;
  const auto dtype = read_dtype(fields);
  result.names_dtype = dtype.has_value();
  config.dtype = dtype.value_or(DType::kBf16);
  config.layers = fields.number("num_hidden_layers", std::nullopt, 1'000'000);
  config.hidden = fields.number("hidden_size");
  config.intermediate = fields.number("intermediate_size");
  config.vocab = fields.number("vocab_size");
  config.tied_embeddings = fields.flag("tie_word_embeddings");
  if (fields.find("tie_word_embeddings") == nullptr) fields.assume("tie_word_embeddings", "false");
  config.heads = fields.number("num_attention_heads");
  family.read(fields, config);
  check_total(config, fields);
  result.assumed = fields.assumed();
  return result;
}

ModelConfig parse_config(std::string_view json_text, const std::string& file) {
  return parse_checkpoint_config(json_text, file).model;
}

std::string config_to_json(const ModelConfig& config) {
  const Family& family = family_of(config);
  nlohmann::ordered_json object{
      {"architectures", {family.class_name}},
      {"model_type", family.name},
      {"torch_dtype", dtype_in_config(config.dtype)},
      {"num_hidden_layers", config.layers},
      {"hidden_size", config.hidden},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv_heads},
      {"intermediate_size", config.intermediate},
      {"vocab_size", config.vocab},
      {"tie_word_embeddings", config.tied_embeddings},
  };
  family.write(object, config);
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
