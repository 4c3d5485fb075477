#include "model/config.hpp"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>

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

constexpr std::array<KnownArchitecture, 4> kKnown{
    {{Architecture::kLlama, "LlamaForCausalLM", "llama"},
     {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2"},
     {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3"},
     {Architecture::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe"}}};

constexpr const char* kKnownHint =
    "supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM";

struct KnownDType {
  DType dtype;
  const char* name;
};

constexpr std::array<KnownDType, 3> kKnownDTypes{
    {{DType::kBf16, "bfloat16"}, {DType::kF16, "float16"}, {DType::kF32, "float32"}}};

/// A config.json's fields, with errors that name field, value and file. null counts as absent, as
/// it does for transformers.
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

  /// A whole number in [1, most].
  [[nodiscard]] uint64_t number(const char* field, std::optional<uint64_t> absent = std::nullopt,
                                uint64_t most = kMaxSize) const {
    const auto* value = find(field);
    if (value == nullptr && absent) return *absent;
    if (value == nullptr || !value->is_number_unsigned() || value->get<uint64_t>() == 0 ||
        value->get<uint64_t>() > most) {
      refuse(field, fmt::format("it must be a whole number from 1 to {}", most));
    }
    return value->get<uint64_t>();
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
};

std::optional<Architecture> architecture_by_class(const Fields& fields) {
  const auto* list = fields.find("architectures");
  if (list == nullptr) return std::nullopt;
  if (list->is_array() && list->size() == 1 && list->front().is_string()) {
    for (const auto& known : kKnown) {
      if (list->front() == known.class_name) return known.architecture;
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

/// transformers 4 writes torch_dtype, transformers 5 dtype.
DType read_dtype(const Fields& fields) {
  const char* field = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const auto name = fields.text(field);
  for (const auto& known : kKnownDTypes) {
    if (name == known.name) return known.dtype;
  }
  fields.refuse(field, "it must be bfloat16, float16 or float32");
}

/// What transformers takes when the field is absent (its configuration_*.py).
uint64_t default_kv_heads(Architecture architecture, uint64_t heads) {
  switch (architecture) {
    case Architecture::kLlama:
      return heads;
    case Architecture::kQwen2:
    case Architecture::kQwen3:
      return 32;
    case Architecture::kQwen3Moe:
      return 4;
  }
  __builtin_unreachable();
}

void read_attention(const Fields& fields, ModelConfig& config) {
  config.heads = fields.number("num_attention_heads");
  config.kv_heads =
      fields.number("num_key_value_heads", default_kv_heads(config.architecture, config.heads));
  if (config.heads % config.kv_heads != 0) {
    fields.refuse("num_attention_heads",
                  fmt::format("it must be a multiple of the {} KV heads", config.kv_heads));
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

/// Only Qwen2 has biases that we support: in the other architectures attention_bias puts one on
/// o_proj too, and no engine layout here has a place for it.
void read_biases(const Fields& fields, ModelConfig& config) {
  config.attention_bias = config.architecture == Architecture::kQwen2;
  for (const char* field : {"attention_bias", "mlp_bias"}) {
    if (!config.attention_bias && fields.flag(field)) {
      fields.refuse(field, "models with a bias on o_proj or the MLP are not supported");
    }
  }
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

void read_experts(const Fields& fields, ModelConfig& config) {
  if (config.architecture != Architecture::kQwen3Moe) return;
  config.experts = fields.number("num_experts", 128);
  config.experts_per_token = fields.number("num_experts_per_tok", 8);
  config.moe_intermediate = fields.number("moe_intermediate_size", 768);
  config.decoder_sparse_step = fields.number("decoder_sparse_step", 1);
  config.mlp_only_layers = read_mlp_only_layers(fields, config.layers);
  if (config.experts_per_token > config.experts) {
    fields.refuse("num_experts_per_tok",
                  fmt::format("it must not exceed the {} experts", config.experts));
  }
}

/// Bounds from above, in floating point so that they cannot overflow themselves.
void check_total(const ModelConfig& config, const std::string& file) {
  const auto real = [](uint64_t value) { return static_cast<double>(value); };
  const double layers = real(config.layers);
  const double hidden = real(config.hidden);
  const double width = real(config.heads + 2 * config.kv_heads) * real(config.head_dim);
  const double experts = real(config.experts) * (3 * real(config.moe_intermediate) + 1);
  const double tensors = 3 + layers * (16 + 3 * real(config.experts));
  const double elements =
      hidden *
      (2 * real(config.vocab) + layers * (2 * width + 3 * real(config.intermediate) + experts + 4));
  if (tensors <= kMaxTensors && elements <= kMaxElements) return;
  throw request_error(
      fmt::format("{}: the sizes cannot be right: \"num_hidden_layers\" {}, \"num_experts\" {}, "
                  "\"hidden_size\" {}, \"vocab_size\" {} and the others give about {:.3g} tensors "
                  "of {:.3g} elements",
                  file, config.layers, config.experts, config.hidden, config.vocab, tensors,
                  elements),
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

}  // namespace

bool ModelConfig::is_moe_layer(uint64_t layer) const {
  return experts > 0 && !mlp_only_layers.contains(layer) && (layer + 1) % decoder_sparse_step == 0;
}

ModelConfig parse_config(std::string_view json_text, const std::string& file) {
  const auto object = parse_json(json_text, file);
  const Fields fields(object, file);
  if (fields.find("quantization_config") != nullptr) {
    fields.refuse("quantization_config", "quantised checkpoints are not supported",
                  "use the checkpoint in bfloat16");
  }
  ModelConfig config;
  config.architecture = read_architecture(fields);
  config.dtype = read_dtype(fields);
  config.layers = fields.number("num_hidden_layers", std::nullopt, 1'000'000);
  config.hidden = fields.number("hidden_size");
  config.intermediate = fields.number("intermediate_size");
  config.vocab = fields.number("vocab_size");
  config.tied_embeddings = fields.flag("tie_word_embeddings");
  config.qk_norm =
      config.architecture == Architecture::kQwen3 || config.architecture == Architecture::kQwen3Moe;
  read_attention(fields, config);
  read_biases(fields, config);
  read_experts(fields, config);
  check_total(config, file);
  return config;
}

std::string config_to_json(const ModelConfig& config) {
  nlohmann::ordered_json object{
      {"architectures", {known(config.architecture).class_name}},
      {"model_type", known(config.architecture).model_type},
      {"torch_dtype", dtype_in_config(config.dtype)},
      {"num_hidden_layers", config.layers},
      {"hidden_size", config.hidden},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv_heads},
      {"head_dim", config.head_dim},
      {"intermediate_size", config.intermediate},
      {"vocab_size", config.vocab},
      {"tie_word_embeddings", config.tied_embeddings},
  };
  if (config.architecture == Architecture::kQwen3Moe) {
    object["num_experts"] = config.experts;
    object["num_experts_per_tok"] = config.experts_per_token;
    object["moe_intermediate_size"] = config.moe_intermediate;
    object["decoder_sparse_step"] = config.decoder_sparse_step;
    object["mlp_only_layers"] = config.mlp_only_layers;
  }
  return object.dump(2) + "\n";
}

ModelConfig keep_first_layers(ModelConfig config, uint64_t layers, const std::string& model) {
  if (layers == 0 || layers > config.layers) {
    throw request_error(fmt::format("--layers {}: {} has {} layers", layers, model, config.layers),
                        fmt::format("keep 1 to {} layers", config.layers));
  }
  config.layers = layers;
  config.mlp_only_layers.erase(config.mlp_only_layers.lower_bound(layers),
                               config.mlp_only_layers.end());
  return config;
}

}  // namespace awex
