// Llama 3 and what has its shape (models/llama/{configuration,modeling}_llama.py of transformers).
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

void read(const ConfigFields& fields, ModelConfig& config) {
  refuse_biases(fields);
  read_grouped_attention(fields, config, {});
}

ModelConfig llama(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t kv_heads,
                  uint64_t intermediate, bool tied) {
  ModelConfig config;
  config.family = "llama";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate = intermediate;
  config.vocab = 128256;
  config.tied_embeddings = tied;
  return config;
}

ModelConfig deepseek_llm_7b() {
  auto config = llama(30, 4096, 32, 32, 11008, false);
  config.vocab = 102400;
  return config;
}

}  // namespace

Family llama_family() {
  return {.name = "llama",
          .class_name = "LlamaForCausalLM",
          .read = read,
          .write = write_grouped_attention,
          .list_layer = list_grouped_layer,
          .presets = {{"llama-3.1-8b", llama(32, 4096, 32, 8, 14336, false)},
                      {"llama-3.1-70b", llama(80, 8192, 64, 8, 28672, false)},
                      {"llama-3.2-1b", llama(16, 2048, 32, 8, 8192, true)},
                      {"llama-3.2-3b", llama(28, 3072, 24, 8, 8192, true)},
                      {"llama-3.3-70b", llama(80, 8192, 64, 8, 28672, false)},
                      {"deepseek-llm-7b", deepseek_llm_7b()}}};
}

}  // namespace awex
