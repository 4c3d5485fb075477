// GLM-4.5 (models/glm4_moe/{configuration,modeling}_glm4_moe.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  config.qk_norm = fields.flag("use_qk_norm");
  config.attention_bias = fields.flag("attention_bias");
  read_grouped_attention(fields, config, {.kv_heads = 8});
  read_experts_beside_shared(fields, config,
                             {.experts = 128,
                              .moe_intermediate = 1408,
                              .experts_per_token = 8,
                              .first_k_dense_replace = 1});
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_grouped_attention(object, config);
  object["attention_bias"] = config.attention_bias;
  object["use_qk_norm"] = config.qk_norm;
  write_experts_beside_shared(object, config);
}

ModelConfig glm_4_5_air() {
  ModelConfig config;
  config.family = "glm4_moe";
  config.layers = 46;
  config.hidden = 4096;
  config.heads = 96;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = 10944;
  config.vocab = 151552;
  config.attention_bias = true;
  config.experts = 128;
  config.experts_per_token = 8;
  config.moe_intermediate = 1408;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

ModelConfig glm_4_5() {
  auto config = glm_4_5_air();
  config.layers = 92;
  config.hidden = 5120;
  config.intermediate = 12288;
  config.qk_norm = true;
  config.experts = 160;
  config.moe_intermediate = 1536;
  config.first_k_dense_replace = 3;
  return config;
}

ModelConfig tiny() {
  auto config = tiny_model_with_shared_expert("glm4_moe");
  config.attention_bias = true;
  config.qk_norm = true;
  return config;
}

}  // namespace

Family glm4_moe_family() {
  return {
      .name = "glm4_moe",
      .class_name = "Glm4MoeForCausalLM",
      .experts_field = "n_routed_experts",
      .read = read,
      .write = write,
      .list_layer = list_grouped_layer,
      .presets = {{"tiny-glm", tiny()}, {"glm-4.5-air", glm_4_5_air()}, {"glm-4.5", glm_4_5()}}};
}

}  // namespace awex
