// MiMo-7B (modeling_mimo.py of XiaomiMiMo/MiMo-7B-RL, which derives its class from Qwen2's, adding
// layers for multi-token prediction).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

/// q, k and v always have a bias. Layers for multi-token prediction lie apart from the others, and
/// are ignored by name.
void read(const ConfigFields& fields, ModelConfig& config) {
  config.attention_bias = true;
  read_grouped_attention(fields, config, {.kv_heads = 32});
}

ModelConfig mimo_7b() {
  ModelConfig config;
  config.family = "mimo";
  config.layers = 36;
  config.hidden = 4096;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = 11008;
  config.vocab = 151680;
  config.attention_bias = true;
  return config;
}

}  // namespace

Family mimo_family() {
  return {.name = "mimo",
          .class_name = "MiMoForCausalLM",
          .read = read,
          .write = write_grouped_attention,
          .list_layer = list_grouped_layer,
          .ignored = {"model.mtp_layers."},
          .presets = {{"mimo-7b", mimo_7b()}}};
}

}  // namespace awex
