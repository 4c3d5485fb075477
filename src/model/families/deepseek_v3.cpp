// DeepSeek-V3, Moonlight and Kimi-K2, which are one class (models/deepseek_v3/
// {configuration,modeling}_deepseek_v3.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  refuse_biases(fields);
  read_latent_attention(fields, config,
                        {.q_lora_rank = 1536,
                         .kv_lora_rank = 512,
                         .qk_nope_head_dim = 128,
                         .qk_rope_head_dim = 64,
                         .v_head_dim = 128});
  read_experts_beside_shared(fields, config,
                             {.experts = 256,
                              .moe_intermediate = 2048,
                              .experts_per_token = 8,
                              .first_k_dense_replace = 3});
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_latent_attention(object, config);
  write_experts_beside_shared(object, config);
}

/// What DeepSeek-V3 and Kimi-K2 have in common.
ModelConfig deepseek_v3(uint64_t heads, uint64_t experts, uint64_t dense_layers, uint64_t vocab) {
  ModelConfig config;
  config.family = "deepseek_v3";
  config.layers = 61;
  config.hidden = 7168;
  config.heads = heads;
  config.kv_heads = heads;
  config.intermediate = 18432;
  config.vocab = vocab;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.experts = experts;
  config.experts_per_token = 8;
  config.moe_intermediate = 2048;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = dense_layers;
  return config;
}

ModelConfig moonlight() {
  auto config = deepseek_v3(16, 64, 1, 163840);
  config.layers = 27;
  config.hidden = 2048;
  config.intermediate = 11264;
  config.q_lora_rank = 0;
  config.experts_per_token = 6;
  config.moe_intermediate = 1408;
  config.shared_experts = 2;
  return config;
}

ModelConfig tiny() {
  auto config = tiny_model_with_shared_expert("deepseek_v3");
  config.kv_heads = config.heads;
  config.head_dim = 0;
  config.q_lora_rank = 48;
  config.kv_lora_rank = 36;
  config.qk_nope_head_dim = 24;
  config.qk_rope_head_dim = 12;
  config.v_head_dim = 36;
  return config;
}

}  // namespace

Family deepseek_v3_family() {
  return {.name = "deepseek_v3",
          .class_name = "DeepseekV3ForCausalLM",
          .other_types = {"kimi_k2"},
          .experts_field = "n_routed_experts",
          .read = read,
          .write = write,
          .list_layer = list_latent_layer,
          .presets = {{"tiny-mla", tiny()},
                      {"moonlight-16b-a3b", moonlight()},
                      {"deepseek-v3", deepseek_v3(128, 256, 3, 129280)},
                      {"kimi-k2", deepseek_v3(64, 384, 1, 163840)}}};
}

}  // namespace awex
