// Seed-OSS (models/seed_oss/{configuration,modeling}_seed_oss.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

/// attention_bias is of q, k and v alone, attention_out_bias of o.
void read(const ConfigFields& fields, ModelConfig& config) {
  config.attention_bias = fields.flag("attention_bias", true);
  config.attention_out_bias = fields.flag("attention_out_bias");
  if (fields.flag("mlp_bias")) {
    fields.refuse("mlp_bias", "models with a bias on the MLP are not supported");
  }
  read_grouped_attention(fields, config, {.kv_heads = 8, .head_dim = 128});
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_grouped_attention(object, config);
  object["attention_bias"] = config.attention_bias;
  object["attention_out_bias"] = config.attention_out_bias;
}

ModelConfig seed_oss_36b() {
  ModelConfig config;
  config.family = "seed_oss";
  config.layers = 64;
  config.hidden = 5120;
  config.heads = 80;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = 27648;
  config.vocab = 155136;
  config.attention_bias = true;
  return config;
}

}  // namespace

Family seed_oss_family() {
  return {.name = "seed_oss",
          .class_name = "SeedOssForCausalLM",
          .read = read,
          .write = write,
          .list_layer = list_grouped_layer,
          .presets = {{"seed-oss-36b", seed_oss_36b()}}};
}

}  // namespace awex
