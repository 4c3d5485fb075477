// GLM-4.7-Flash: latent attention as DeepSeek-V3's, experts as GLM-4.5's (models/glm4_moe_lite/
// {configuration,modeling}_glm4_moe_lite.py of transformers 5).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  refuse_biases(fields);
  read_latent_attention(fields, config,
                        {.q_lora_rank = 768,
                         .kv_lora_rank = 512,
                         .qk_nope_head_dim = 192,
                         .qk_rope_head_dim = 64,
                         .v_head_dim = 256});
  read_experts_beside_shared(fields, config,
                             {.experts = 64,
                              .moe_intermediate = 1536,
                              .experts_per_token = 4,
                              .first_k_dense_replace = 1});
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_latent_attention(object, config);
  write_experts_beside_shared(object, config);
}

ModelConfig glm_4_7_flash() {
  ModelConfig config;
  config.family = "glm4_moe_lite";
  config.layers = 47;
  config.hidden = 2048;
  config.heads = 20;
  config.kv_heads = 20;
  config.intermediate = 10240;
  config.vocab = 154880;
  config.q_lora_rank = 768;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 192;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 256;
  config.experts = 64;
  config.experts_per_token = 4;
  config.moe_intermediate = 1536;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

}  // namespace

Family glm4_moe_lite_family() {
  return {.name = "glm4_moe_lite",
          .class_name = "Glm4MoeLiteForCausalLM",
          .experts_field = "n_routed_experts",
          .read = read,
          .write = write,
          .list_layer = list_latent_layer,
          .presets = {{"glm-4.7-flash", glm_4_7_flash()}}};
}

}  // namespace awex
