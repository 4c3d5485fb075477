// Mixtral (models/mixtral/{configuration,modeling}_mixtral.py of transformers). Files call its
// parts as the first release did, "block_sparse_moe.experts.0.w1"; classes of transformers 5 hold
// "mlp.experts" and are saved under the old names (conversion_mapping.py). Both are read.
#include <nlohmann/json.hpp>

#include "model/families/blocks.hpp"

namespace awex {
namespace {

/// Every layer has experts, which are as wide as intermediate_size.
void read(const ConfigFields& fields, ModelConfig& config) {
  refuse_biases(fields);
  read_grouped_attention(fields, config, {.kv_heads = 8});
  read_expert_count(fields, config, 8);
  config.moe_intermediate = config.intermediate;
  read_experts_per_token(fields, config, 2);
}

void write(nlohmann::ordered_json& object, const ModelConfig& config) {
  write_grouped_attention(object, config);
  object["num_local_experts"] = config.experts;
  object["num_experts_per_tok"] = config.experts_per_token;
}

void list_layer(TensorLister& list) {
  list_input_norm(list);
  list_grouped_attention(list);
  list_post_attention_norm(list);
  list_experts(list, {.module = "block_sparse_moe", .gate = "w1", .up = "w3", .down = "w2"});
}

ModelConfig mixtral(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t intermediate,
                    uint64_t vocab) {
  ModelConfig config;
  config.family = "mixtral";
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = vocab;
  config.experts = 8;
  config.experts_per_token = 2;
  config.moe_intermediate = intermediate;
  return config;
}

}  // namespace

Family mixtral_family() {
  return {.name = "mixtral",
          .class_name = "MixtralForCausalLM",
          .experts_field = "num_local_experts",
          .read = read,
          .write = write,
          .list_layer = list_layer,
          .stored = {{".block_sparse_moe.", ".mlp."}},
          .presets = {{"mixtral-8x7b", mixtral(32, 4096, 32, 14336, 32000)},
                      {"mixtral-8x22b", mixtral(56, 6144, 48, 16384, 32000)}}};
}

}  // namespace awex
