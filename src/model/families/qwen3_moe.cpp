// Qwen3-MoE (models/qwen3_moe/{configuration,modeling}_qwen3_moe.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  config.qk_norm = true;
  refuse_biases(fields);
  read_grouped_attention(fields, config, {.kv_heads = 4});
  read_expert_count(fields, config, 128);
  config.moe_intermediate = fields.number("moe_intermediate_size", 768);
  read_sparse_layers(fields, config);
  read_experts_per_token(fields, config, 8);
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_grouped_attention(object, config);
  if (config.experts == 0) return;
  object["num_experts"] = config.experts;
  object["num_experts_per_tok"] = config.experts_per_token;
  object["moe_intermediate_size"] = config.moe_intermediate;
  write_sparse_layers(object, config);
}

ModelConfig qwen3_moe(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t intermediate,
                      uint64_t moe_intermediate) {
  ModelConfig config;
  config.family = "qwen3_moe";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = 4;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = 151936;
  config.qk_norm = true;
  config.experts = 128;
  config.experts_per_token = 8;
  config.moe_intermediate = moe_intermediate;
  return config;
}

ModelConfig tiny(bool tied) {
  auto config = tiny_moe_model("qwen3_moe");
  config.tied_embeddings = tied;
  config.qk_norm = true;
  return config;
}

}  // namespace

Family qwen3_moe_family() {
  return {.name = "qwen3_moe",
          .class_name = "Qwen3MoeForCausalLM",
          .experts_field = "num_experts",
          .read = read,
          .write = write,
          .list_layer = list_grouped_layer,
          .presets = {{"tiny-moe", tiny(false)},
                      {"tiny-moe-tied", tiny(true)},
                      {"qwen3-30b-a3b", qwen3_moe(48, 2048, 32, 6144, 768)},
                      {"qwen3-235b-a22b", qwen3_moe(94, 4096, 64, 12288, 1536)}}};
}

}  // namespace awex
