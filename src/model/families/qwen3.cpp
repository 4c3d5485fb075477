// Qwen3 (models/qwen3/{configuration,modeling}_qwen3.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  config.qk_norm = true;
  refuse_biases(fields);
  read_grouped_attention(fields, config, {.kv_heads = 32, .head_dim = 128});
}

ModelConfig qwen3(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t intermediate,
                  bool tied) {
  ModelConfig config;
  config.family = "qwen3";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = 151936;
  config.tied_embeddings = tied;
  config.qk_norm = true;
  return config;
}

ModelConfig tiny(bool tied) {
  auto config = tiny_model("qwen3");
  config.tied_embeddings = tied;
  config.qk_norm = true;
  return config;
}

}  // namespace

Family qwen3_family() {
  return {.name = "qwen3",
          .class_name = "Qwen3ForCausalLM",
          .read = read,
          .write = write_grouped_attention,
          .list_layer = list_grouped_layer,
          .presets = {{"tiny-dense", tiny(false)},
                      {"tiny-dense-tied", tiny(true)},
                      {"qwen3-0.6b", qwen3(28, 1024, 16, 3072, true)},
                      {"qwen3-1.7b", qwen3(28, 2048, 16, 6144, true)},
                      {"qwen3-4b", qwen3(36, 2560, 32, 9728, true)},
                      {"qwen3-8b", qwen3(36, 4096, 32, 12288, false)},
                      {"qwen3-14b", qwen3(40, 5120, 40, 17408, false)},
                      {"qwen3-32b", qwen3(64, 5120, 64, 25600, false)}}};
}

}  // namespace awex
