// The canonical tensors of transformers' models/*/modeling_*.py, named as it saves them
// (conversion_mapping.py).
#include <fmt/format.h>

#include "support/oracle.hpp"

namespace awex::test {
namespace {

class Shapes {
 public:
  explicit Shapes(const ModelConfig& config) : config_(config) {}

  std::map<std::string, std::pair<uint64_t, uint64_t>> all() {
    shape("model.embed_tokens.weight", config_.vocab, config_.hidden);
    for (uint64_t layer = 0; layer < config_.layers; ++layer) add_layer(layer);
    at_.clear();
    shape("model.norm.weight", config_.hidden, 1);
    if (!config_.tied_embeddings) shape("lm_head.weight", config_.vocab, config_.hidden);
    return std::move(out_);
  }

 private:
  void shape(const std::string& name, uint64_t rows, uint64_t cols) {
    out_[at_ + name] = {rows, cols};
  }

  void add_layer(uint64_t layer) {
    at_ = fmt::format("model.layers.{}.", layer);
    shape("input_layernorm.weight", config_.hidden, 1);
    shape("post_attention_layernorm.weight", config_.hidden, 1);
    config_.kv_lora_rank > 0 ? add_latent_attention() : add_attention();
    if (has_experts(layer)) {
      add_experts();
    } else {
      add_mlp("mlp.", config_.intermediate);
    }
  }

  [[nodiscard]] bool has_experts(uint64_t layer) const {
    return config_.experts > 0 && config_.mlp_only_layers.count(layer) == 0 &&
           layer >= config_.first_k_dense_replace && (layer + 1) % config_.decoder_sparse_step == 0;
  }

  void add_attention() {
    const uint64_t q = config_.heads * config_.head_dim;
    const uint64_t kv = config_.kv_heads * config_.head_dim;
    for (const auto& [name, rows] : {std::pair{"q", q}, std::pair{"k", kv}, std::pair{"v", kv}}) {
      shape(fmt::format("self_attn.{}_proj.weight", name), rows, config_.hidden);
      if (config_.attention_bias) shape(fmt::format("self_attn.{}_proj.bias", name), rows, 1);
    }
    shape("self_attn.o_proj.weight", config_.hidden, q);
    if (config_.attention_out_bias) shape("self_attn.o_proj.bias", config_.hidden, 1);
    if (config_.qk_norm) {
      shape("self_attn.q_norm.weight", config_.head_dim, 1);
      shape("self_attn.k_norm.weight", config_.head_dim, 1);
    }
  }

  void add_latent_attention() {
    const uint64_t qk = config_.qk_nope_head_dim + config_.qk_rope_head_dim;
    const uint64_t kv = config_.kv_lora_rank;
    if (config_.q_lora_rank == 0) {
      shape("self_attn.q_proj.weight", config_.heads * qk, config_.hidden);
    } else {
      shape("self_attn.q_a_proj.weight", config_.q_lora_rank, config_.hidden);
      shape("self_attn.q_a_layernorm.weight", config_.q_lora_rank, 1);
      shape("self_attn.q_b_proj.weight", config_.heads * qk, config_.q_lora_rank);
    }
    shape("self_attn.kv_a_proj_with_mqa.weight", kv + config_.qk_rope_head_dim, config_.hidden);
    shape("self_attn.kv_a_layernorm.weight", kv, 1);
    shape("self_attn.kv_b_proj.weight",
          config_.heads * (config_.qk_nope_head_dim + config_.v_head_dim), kv);
    shape("self_attn.o_proj.weight", config_.hidden, config_.heads * config_.v_head_dim);
  }

  void add_mlp(const std::string& mlp, uint64_t intermediate, const std::string& gate = "gate_proj",
               const std::string& up = "up_proj", const std::string& down = "down_proj") {
    shape(fmt::format("{}{}.weight", mlp, gate), intermediate, config_.hidden);
    shape(fmt::format("{}{}.weight", mlp, up), intermediate, config_.hidden);
    shape(fmt::format("{}{}.weight", mlp, down), config_.hidden, intermediate);
  }

  void add_experts() {
    const std::string moe = moe_module(config_) + ".";
    const bool mixtral = config_.family == "mixtral";
    shape(moe + "gate.weight", config_.experts, config_.hidden);
    for (uint64_t e = 0; e < config_.experts; ++e) {
      const std::string expert = fmt::format("{}experts.{}.", moe, e);
      if (mixtral) {
        add_mlp(expert, config_.moe_intermediate, "w1", "w3", "w2");
      } else {
        add_mlp(expert, config_.moe_intermediate);
      }
    }
    if (config_.has_score_correction_bias) {
      shape(moe + "gate.e_score_correction_bias", config_.experts, 1);
    }
    if (config_.family == "qwen2_moe") {
      add_mlp(moe + "shared_expert.", config_.shared_intermediate);
      shape(moe + "shared_expert_gate.weight", 1, config_.hidden);
    } else if (config_.shared_experts > 0) {
      add_mlp(moe + "shared_experts.", config_.shared_experts * config_.moe_intermediate);
    }
  }

  const ModelConfig& config_;
  std::string at_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> out_;
};

}  // namespace

std::string moe_module(const ModelConfig& config) {
  return config.family == "mixtral" ? "block_sparse_moe" : "mlp";
}

std::map<std::string, std::pair<uint64_t, uint64_t>> expected_tensors(const ModelConfig& config) {
  return Shapes(config).all();
}

}  // namespace awex::test
