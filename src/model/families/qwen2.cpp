// Qwen2 and Qwen2.5 (models/qwen2/{configuration,modeling}_qwen2.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

/// q, k and v always have a bias, whatever attention_bias says.
void read(const ConfigFields& fields, ModelConfig& config) {
  config.attention_bias = true;
  read_grouped_attention(fields, config, {.kv_heads = 32});
}

/// Qwen2.5, whose heads share the hidden size.
ModelConfig qwen2(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t kv_heads,
                  uint64_t intermediate, bool tied) {
  ModelConfig config;
  config.family = "qwen2";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate = intermediate;
  config.vocab = tied ? 151936 : 152064;
  config.tied_embeddings = tied;
  config.attention_bias = true;
  return config;
}

/// Heads share the hidden size in every engine.
ModelConfig tiny() {
  auto config = tiny_model("qwen2");
  config.heads = 12;
  config.hidden = config.heads * config.head_dim;
  config.attention_bias = true;
  return config;
}

}  // namespace

Family qwen2_family() {
  return {.name = "qwen2",
          .class_name = "Qwen2ForCausalLM",
          .read = read,
          .write = write_grouped_attention,
          .list_layer = list_grouped_layer,
          .presets = {{"tiny-dense-bias", tiny()},
                      {"qwen2.5-0.5b", qwen2(24, 896, 14, 2, 4864, true)},
                      {"qwen2.5-1.5b", qwen2(28, 1536, 12, 2, 8960, true)},
                      {"qwen2.5-3b", qwen2(36, 2048, 16, 2, 11008, true)},
                      {"qwen2.5-7b", qwen2(28, 3584, 28, 4, 18944, false)},
                      {"qwen2.5-14b", qwen2(48, 5120, 40, 8, 13824, false)},
                      {"qwen2.5-32b", qwen2(64, 5120, 40, 8, 27648, false)},
                      {"qwen2.5-72b", qwen2(80, 8192, 64, 8, 29568, false)}}};
}

}  // namespace awex
