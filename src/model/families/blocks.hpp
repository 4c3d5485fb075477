#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "model/config_fields.hpp"
#include "model/families/family.hpp"
#include "model/families/tensor_lister.hpp"

/// Parts that families share: each reads its fields of config.json, writes them, and lists its
/// tensors. Defaults are those that transformers' configuration_*.py of the family takes. All
/// readers throw request errors that name field and file.
namespace awex {

// ---- attention

/// Without a value: as many KV heads as heads, and heads that share the hidden size.
struct GroupedDefaults {
  std::optional<uint64_t> kv_heads{};
  std::optional<uint64_t> head_dim{};
};
/// num_key_value_heads (null: as many as heads) and head_dim.
void read_grouped_attention(const ConfigFields& fields, ModelConfig& config,
                            const GroupedDefaults& absent);
void write_grouped_attention(nlohmann::ordered_json& object, const ModelConfig& config);
/// q, k, v and o, of these the biases that the config has, and q_norm and k_norm if it has them.
void list_grouped_attention(TensorLister& list);

struct LatentDefaults {
  uint64_t q_lora_rank;
  uint64_t kv_lora_rank;
  uint64_t qk_nope_head_dim;
  uint64_t qk_rope_head_dim;
  uint64_t v_head_dim;
};
/// The ranks and sizes of latent attention. num_key_value_heads and head_dim say nothing about its
/// weights.
void read_latent_attention(const ConfigFields& fields, ModelConfig& config,
                           const LatentDefaults& absent);
void write_latent_attention(nlohmann::ordered_json& object, const ModelConfig& config);
void list_latent_attention(TensorLister& list);

/// Refuses attention_bias and mlp_bias: they would put biases on o_proj or the MLP, for which no
/// engine's layout here has a place.
void refuse_biases(const ConfigFields& fields);

// ---- experts

/// The name that this file uses for the number of routed experts.
[[nodiscard]] const char* experts_field(const ConfigFields& fields, const ModelConfig& config);
/// That number, under any of its names.
void read_expert_count(const ConfigFields& fields, ModelConfig& config, uint64_t absent);
/// num_experts_per_tok, which must not exceed the experts.
void read_experts_per_token(const ConfigFields& fields, ModelConfig& config, uint64_t absent);

/// decoder_sparse_step and mlp_only_layers: which layers have experts, as Qwen says it.
void read_sparse_layers(const ConfigFields& fields, ModelConfig& config);
void write_sparse_layers(nlohmann::ordered_json& object, const ModelConfig& config);

struct SharedExpertDefaults {
  uint64_t experts;
  uint64_t moe_intermediate;
  uint64_t experts_per_token;
  uint64_t first_k_dense_replace;
};
/// Experts chosen by sigmoid scores with e_score_correction_bias ("noaux_tc"), beside shared ones
/// (DeepSeek-V3, GLM-4.5): behind the first dense layers (first_k_dense_replace or mlp_layer_types)
/// all layers have them. MTP layers, too.
void read_experts_beside_shared(const ConfigFields& fields, ModelConfig& config,
                                const SharedExpertDefaults& absent);
void write_experts_beside_shared(nlohmann::ordered_json& object, const ModelConfig& config);

/// How a family calls the parts of a layer with experts.
struct MoeNames {
  const char* module = "mlp";
  const char* gate = "gate_proj";  ///< Of an expert; so are up and down.
  const char* up = "up_proj";
  const char* down = "down_proj";
  const char* shared = "shared_experts";
};
/// The router, its bias if the config has one, routed experts in order, shared ones and their gate
/// if the config has them.
void list_experts(TensorLister& list, const MoeNames& names = {});

// ---- layers

void list_mlp(TensorLister& list);
/// "input_layernorm" and "post_attention_layernorm".
void list_input_norm(TensorLister& list);
void list_post_attention_norm(TensorLister& list);

/// A layer of grouped attention, of latent attention; with an MLP, or experts where the config has
/// them.
void list_grouped_layer(TensorLister& list);
void list_latent_layer(TensorLister& list);

// ---- presets

/// The small models that tests use: they divide by 2, 3 and 4, and engines have to pad their
/// vocabulary. A dense one, and one with experts.
[[nodiscard]] ModelConfig tiny_model(const char* family);
[[nodiscard]] ModelConfig tiny_moe_model(const char* family);
/// The same with a shared expert, whose first layer is dense.
[[nodiscard]] ModelConfig tiny_model_with_shared_expert(const char* family);

}  // namespace awex
