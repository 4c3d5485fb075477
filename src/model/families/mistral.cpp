// Mistral (models/mistral/{configuration,modeling}_mistral.py of transformers). A sliding window
// changes no weights.
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  refuse_biases(fields);
  read_grouped_attention(fields, config, {.kv_heads = 8});
}

ModelConfig mistral(uint64_t layers, uint64_t hidden, uint64_t intermediate, uint64_t vocab) {
  ModelConfig config;
  config.family = "mistral";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = vocab;
  return config;
}

}  // namespace

Family mistral_family() {
  return {.name = "mistral",
          .class_name = "MistralForCausalLM",
          .read = read,
          .write = write_grouped_attention,
          .list_layer = list_grouped_layer,
          .presets = {{"mistral-7b-v0.3", mistral(32, 4096, 14336, 32768)},
                      {"mistral-nemo-12b", mistral(40, 5120, 14336, 131072)},
                      {"mistral-small-24b", mistral(40, 5120, 32768, 131072)}}};
}

}  // namespace awex
