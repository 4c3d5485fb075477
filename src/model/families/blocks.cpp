#include "model/families/blocks.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/checked.hpp"
#include "base/error.hpp"

namespace awex {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// The only router of these families: sigmoid scores with e_score_correction_bias.
constexpr const char* kRouterMethod = "noaux_tc";

/// The names of a field in transformers 4, 5 (its classes' attribute_map) and remote code.
constexpr ConfigFields::Names kExpertNames = {"num_experts", "num_local_experts",
                                              "n_routed_experts"};
constexpr ConfigFields::Names kMtpNames = {"num_nextn_predict_layers", "num_mtp_layers"};

ordered_json null_if_zero(uint64_t value) {
  return value == 0 ? ordered_json() : ordered_json(value);
}

std::set<uint64_t> read_mlp_only_layers(const ConfigFields& fields, uint64_t layers) {
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

/// The layers without experts that "mlp_layer_types" lists, where the file has it: newer classes of
/// transformers say so what first_k_dense_replace said.
std::optional<std::set<uint64_t>> read_dense_layers(const ConfigFields& fields, uint64_t layers) {
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
uint64_t read_first_dense(const ConfigFields& fields, uint64_t layers, uint64_t absent) {
  constexpr const char* kField = "first_k_dense_replace";
  const auto dense = read_dense_layers(fields, layers);
  if (!dense) return fields.number(kField, absent, kMaxField, 0);
  const uint64_t count = dense->size();
  if (count > 0 && *dense->rbegin() != count - 1) {
    fields.refuse("mlp_layer_types", "dense layers behind sparse ones are not supported");
  }
  if (fields.find(kField) != nullptr &&
      std::min(fields.number(kField, absent, kMaxField, 0), layers) != count) {
    fields.refuse(kField, fmt::format("that contradicts \"mlp_layer_types\", which begins with {} "
                                      "dense layers",
                                      count));
  }
  return count;
}

void list_projection(TensorLister& list, const char* name, TensorRole role, TensorRole bias,
                     uint64_t rows) {
  list.matrix(role, fmt::format("self_attn.{}", name), rows, list.config().hidden);
  if (list.config().attention_bias) list.vector(bias, fmt::format("self_attn.{}.bias", name), rows);
}

void list_expert(TensorLister& list, const MoeNames& names, uint32_t expert) {
  const auto prefix = fmt::format("{}.experts.{}.", names.module, expert);
  const uint64_t width = list.config().moe_intermediate;
  const uint64_t hidden = list.config().hidden;
  list.matrix(TensorRole::kExpertGate, prefix + names.gate, width, hidden, expert);
  list.matrix(TensorRole::kExpertUp, prefix + names.up, width, hidden, expert);
  list.matrix(TensorRole::kExpertDown, prefix + names.down, hidden, width, expert);
}

void list_shared_experts(TensorLister& list, const MoeNames& names) {
  const auto prefix = fmt::format("{}.{}", names.module, names.shared);
  const uint64_t width = list.config().shared_width();
  const uint64_t hidden = list.config().hidden;
  list.matrix(TensorRole::kSharedGate, prefix + ".gate_proj", width, hidden);
  list.matrix(TensorRole::kSharedUp, prefix + ".up_proj", width, hidden);
  list.matrix(TensorRole::kSharedDown, prefix + ".down_proj", hidden, width);
}

void list_mlp_or_experts(TensorLister& list) {
  list_post_attention_norm(list);
  list.is_moe_layer() ? list_experts(list) : list_mlp(list);
}

}  // namespace

// ---- attention

void read_grouped_attention(const ConfigFields& fields, ModelConfig& config,
                            const GroupedDefaults& absent) {
  constexpr const char* kKvHeads = "num_key_value_heads";
  config.kv_heads = fields.is_null(kKvHeads)
                        ? config.heads
                        : fields.number(kKvHeads, absent.kv_heads.value_or(config.heads));
  if (config.heads % config.kv_heads != 0) {
    fields.refuse("num_attention_heads", fmt::format("it must be a multiple of the {} KV heads{}",
                                                     config.kv_heads, fields.origin(kKvHeads)));
  }
  if (fields.find("head_dim") == nullptr && !absent.head_dim && config.hidden % config.heads != 0) {
    fields.refuse("head_dim",
                  fmt::format("and \"hidden_size\" {} is no multiple of \"num_attention_"
                              "heads\" {}",
                              config.hidden, config.heads));
  }
  config.head_dim =
      fields.number("head_dim", absent.head_dim.value_or(config.hidden / config.heads));
}

void write_grouped_attention(ordered_json& object, const ModelConfig& config) {
  object["head_dim"] = config.head_dim;
}

void list_grouped_attention(TensorLister& list) {
  const auto& config = list.config();
  const uint64_t q_rows = config.heads * config.head_dim;
  const uint64_t kv_rows = config.kv_heads * config.head_dim;
  list_projection(list, "q_proj", TensorRole::kQ, TensorRole::kQBias, q_rows);
  list_projection(list, "k_proj", TensorRole::kK, TensorRole::kKBias, kv_rows);
  list_projection(list, "v_proj", TensorRole::kV, TensorRole::kVBias, kv_rows);
  list.matrix(TensorRole::kO, "self_attn.o_proj", config.hidden, q_rows);
  if (config.attention_out_bias) {
    list.vector(TensorRole::kOBias, "self_attn.o_proj.bias", config.hidden);
  }
  if (config.qk_norm) {
    list.norm(TensorRole::kQNorm, "self_attn.q_norm", config.head_dim);
    list.norm(TensorRole::kKNorm, "self_attn.k_norm", config.head_dim);
  }
}

void read_latent_attention(const ConfigFields& fields, ModelConfig& config,
                           const LatentDefaults& absent) {
  config.kv_heads = config.heads;
  config.q_lora_rank = fields.number_or_null("q_lora_rank", absent.q_lora_rank);
  config.kv_lora_rank = fields.number("kv_lora_rank", absent.kv_lora_rank);
  config.qk_nope_head_dim = fields.number("qk_nope_head_dim", absent.qk_nope_head_dim);
  config.qk_rope_head_dim = fields.number("qk_rope_head_dim", absent.qk_rope_head_dim);
  config.v_head_dim = fields.number("v_head_dim", absent.v_head_dim);
}

void write_latent_attention(ordered_json& object, const ModelConfig& config) {
  object["q_lora_rank"] = null_if_zero(config.q_lora_rank);
  object["kv_lora_rank"] = config.kv_lora_rank;
  object["qk_nope_head_dim"] = config.qk_nope_head_dim;
  object["qk_rope_head_dim"] = config.qk_rope_head_dim;
  object["v_head_dim"] = config.v_head_dim;
}

void list_latent_attention(TensorLister& list) {
  const auto& c = list.config();
  const uint64_t q_rows = c.heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
  if (c.q_lora_rank == 0) {
    list.matrix(TensorRole::kQUp, "self_attn.q_proj", q_rows, c.hidden);
  } else {
    list.matrix(TensorRole::kQDown, "self_attn.q_a_proj", c.q_lora_rank, c.hidden);
    list.norm(TensorRole::kQDownNorm, "self_attn.q_a_layernorm", c.q_lora_rank);
    list.matrix(TensorRole::kQUp, "self_attn.q_b_proj", q_rows, c.q_lora_rank);
  }
  list.matrix(TensorRole::kKvDown, "self_attn.kv_a_proj_with_mqa",
              c.kv_lora_rank + c.qk_rope_head_dim, c.hidden);
  list.norm(TensorRole::kKvDownNorm, "self_attn.kv_a_layernorm", c.kv_lora_rank);
  list.matrix(TensorRole::kKvUp, "self_attn.kv_b_proj",
              c.heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
  list.matrix(TensorRole::kO, "self_attn.o_proj", c.hidden, c.heads * c.v_head_dim);
}

void refuse_biases(const ConfigFields& fields) {
  for (const char* field : {"attention_bias", "mlp_bias"}) {
    if (!fields.flag(field)) continue;
    fields.refuse(field, "models with a bias on o_proj or the MLP are not supported");
  }
}

// ---- experts

const char* experts_field(const ConfigFields& fields, const ModelConfig& config) {
  return fields.name_of(family_of(config).experts_field, kExpertNames);
}

void read_expert_count(const ConfigFields& fields, ModelConfig& config, uint64_t absent) {
  config.experts = fields.number(experts_field(fields, config), absent);
}

void read_experts_per_token(const ConfigFields& fields, ModelConfig& config, uint64_t absent) {
  config.experts_per_token = fields.number("num_experts_per_tok", absent);
  if (config.experts_per_token <= config.experts) return;
  const bool is_given = fields.find("num_experts_per_tok") != nullptr;
  fields.refuse(
      "num_experts_per_tok",
      fmt::format(
          "{} must not exceed the {} experts{}",
          is_given ? "it" : fmt::format("transformers' default of {}", config.experts_per_token),
          config.experts, fields.origin(experts_field(fields, config))));
}

void read_sparse_layers(const ConfigFields& fields, ModelConfig& config) {
  config.decoder_sparse_step = fields.number("decoder_sparse_step", 1);
  config.mlp_only_layers = read_mlp_only_layers(fields, config.layers);
}

void write_sparse_layers(ordered_json& object, const ModelConfig& config) {
  object["decoder_sparse_step"] = config.decoder_sparse_step;
  object["mlp_only_layers"] = config.mlp_only_layers;
}

void read_experts_beside_shared(const ConfigFields& fields, ModelConfig& config,
                                const SharedExpertDefaults& absent) {
  read_expert_count(fields, config, absent.experts);
  config.moe_intermediate = fields.number("moe_intermediate_size", absent.moe_intermediate);
  config.shared_experts = fields.number_or_null("n_shared_experts", 1);
  config.has_score_correction_bias = true;
  config.first_k_dense_replace =
      read_first_dense(fields, config.layers, absent.first_k_dense_replace);
  config.mtp_layers =
      fields.number(fields.name_of("num_nextn_predict_layers", kMtpNames), 0, kMaxField, 0);
  if (fields.number("moe_layer_freq", 1) != 1) {
    fields.refuse("moe_layer_freq", "it must be 1, experts in every layer after the dense ones");
  }
  if (fields.text("topk_method").value_or(kRouterMethod) != kRouterMethod) {
    fields.refuse("topk_method",
                  fmt::format("only the router \"{}\", which has e_score_correction_bias, is "
                              "supported",
                              kRouterMethod));
  }
  read_experts_per_token(fields, config, absent.experts_per_token);
}

void write_experts_beside_shared(ordered_json& object, const ModelConfig& config) {
  if (config.experts == 0) return;
  object[family_of(config).experts_field] = config.experts;
  object["num_experts_per_tok"] = config.experts_per_token;
  object["moe_intermediate_size"] = config.moe_intermediate;
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

void list_experts(TensorLister& list, const MoeNames& names) {
  const auto& config = list.config();
  const auto router = fmt::format("{}.gate", names.module);
  list.matrix(TensorRole::kRouter, router, config.experts, config.hidden);
  if (config.has_score_correction_bias) {
    // modeling_deepseek_v3.py, _keep_in_fp32_modules_strict.
    list.vector(TensorRole::kRouterBias, router + ".e_score_correction_bias", config.experts,
                DType::kF32);
  }
  for (uint32_t expert = 0; expert < config.experts; ++expert) list_expert(list, names, expert);
  if (config.shared_experts == 0) return;
  list_shared_experts(list, names);
  if (config.has_shared_expert_gate) {
    list.matrix(TensorRole::kSharedExpertGate,
                fmt::format("{}.{}_gate", names.module, names.shared), 1, config.hidden);
  }
}

// ---- layers

void list_mlp(TensorLister& list) {
  const auto& config = list.config();
  list.matrix(TensorRole::kGate, "mlp.gate_proj", config.intermediate, config.hidden);
  list.matrix(TensorRole::kUp, "mlp.up_proj", config.intermediate, config.hidden);
  list.matrix(TensorRole::kDown, "mlp.down_proj", config.hidden, config.intermediate);
}

void list_input_norm(TensorLister& list) {
  list.norm(TensorRole::kInputNorm, "input_layernorm", list.config().hidden);
}

void list_post_attention_norm(TensorLister& list) {
  list.norm(TensorRole::kPostAttentionNorm, "post_attention_layernorm", list.config().hidden);
}

void list_grouped_layer(TensorLister& list) {
  list_input_norm(list);
  list_grouped_attention(list);
  list_mlp_or_experts(list);
}

void list_latent_layer(TensorLister& list) {
  list_input_norm(list);
  list_latent_attention(list);
  list_mlp_or_experts(list);
}

// ---- presets

ModelConfig tiny_model(const char* family) {
  ModelConfig config;
  config.family = family;
  config.layers = 12;
  config.hidden = 96;
  config.heads = 24;
  config.kv_heads = 12;
  config.head_dim = 32;  // engines' attention takes no smaller heads
  config.intermediate = 192;
  config.vocab = 1129;  // padded to 1152 = 64 * 18, which divides by 2, 3 and 4
  return config;
}

ModelConfig tiny_moe_model(const char* family) {
  auto config = tiny_model(family);
  config.experts = 12;
  config.experts_per_token = 4;
  config.moe_intermediate = 48;
  return config;
}

ModelConfig tiny_model_with_shared_expert(const char* family) {
  auto config = tiny_moe_model(family);
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

}  // namespace awex
