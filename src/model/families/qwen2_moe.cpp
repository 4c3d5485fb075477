// Qwen2-MoE, of Qwen1.5-MoE too (models/qwen2_moe/{configuration,modeling}_qwen2_moe.py of
// transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

/// Layers with experts have one shared expert, which a gate weighs. Heads share the hidden size in
/// all engines, whatever head_dim says.
void read(const ConfigFields& fields, ModelConfig& config) {
  config.attention_bias = fields.flag("qkv_bias", true);
  read_grouped_attention(fields, config, {.kv_heads = 16});
  read_expert_count(fields, config, 60);
  config.moe_intermediate = fields.number("moe_intermediate_size", 1408);
  config.shared_experts = 1;
  config.shared_intermediate = fields.number("shared_expert_intermediate_size", 5632);
  config.has_shared_expert_gate = true;
  read_sparse_layers(fields, config);
  read_experts_per_token(fields, config, 4);
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_grouped_attention(object, config);
  object["qkv_bias"] = config.attention_bias;
  object["num_experts"] = config.experts;
  object["num_experts_per_tok"] = config.experts_per_token;
  object["moe_intermediate_size"] = config.moe_intermediate;
  object["shared_expert_intermediate_size"] = config.shared_intermediate;
  write_sparse_layers(object, config);
}

void list_layer(TensorLister& list) {
  list_input_norm(list);
  list_grouped_attention(list);
  list_post_attention_norm(list);
  list.is_moe_layer() ? list_experts(list, {.shared = "shared_expert"}) : list_mlp(list);
}

ModelConfig qwen2_moe(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t kv_heads,
                      uint64_t intermediate) {
  ModelConfig config;
  config.family = "qwen2_moe";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = 151936;
  config.attention_bias = true;
  config.shared_experts = 1;
  config.has_shared_expert_gate = true;
  return config;
}

ModelConfig qwen_1_5_moe() {
  auto config = qwen2_moe(24, 2048, 16, 16, 5632);
  config.experts = 60;
  config.experts_per_token = 4;
  config.moe_intermediate = 1408;
  config.shared_intermediate = 5632;
  return config;
}

ModelConfig qwen2_57b() {
  auto config = qwen2_moe(28, 3584, 28, 4, 18944);
  config.experts = 64;
  config.experts_per_token = 8;
  config.moe_intermediate = 2560;
  config.shared_intermediate = 20480;
  return config;
}

}  // namespace

Family qwen2_moe_family() {
  return {.name = "qwen2_moe",
          .class_name = "Qwen2MoeForCausalLM",
          .experts_field = "num_experts",
          .read = read,
          .write = write,
          .list_layer = list_layer,
          .presets = {{"qwen1.5-moe-a2.7b", qwen_1_5_moe()}, {"qwen2-57b-a14b", qwen2_57b()}}};
}

}  // namespace awex
