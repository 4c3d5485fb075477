#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "model/dtype.hpp"

namespace awex {

enum class Architecture : uint8_t { kLlama, kQwen2, kQwen3, kQwen3Moe };

/// What the product needs of a Hugging Face config.json. Sizes are in elements.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  DType dtype = DType::kBf16;
  uint64_t layers = 0;
  uint64_t hidden = 0;
  uint64_t heads = 0;
  uint64_t kv_heads = 0;
  uint64_t head_dim = 0;  ///< May differ from hidden / heads (Qwen3).
  uint64_t intermediate = 0;
  uint64_t vocab = 0;
  bool tied_embeddings = false;
  bool attention_bias = false;  ///< q, k and v have a bias.
  bool qk_norm = false;         ///< q_norm and k_norm over head_dim.
  uint64_t experts = 0;         ///< 0 for a dense model.
  uint64_t moe_intermediate = 0;
  uint64_t experts_per_token = 0;
  uint64_t decoder_sparse_step = 1;
  std::set<uint64_t> mlp_only_layers;

  /// Whether layer `layer` has experts: `experts` > 0, the layer is not in mlp_only_layers, and
  /// layer + 1 is a multiple of decoder_sparse_step (transformers, modeling_qwen3_moe.py).
  [[nodiscard]] bool is_moe_layer(uint64_t layer) const;

  bool operator==(const ModelConfig&) const = default;
};

/// Reads a config.json's text. Throws a request error that names the field, its value and the file
/// for missing, absurd or contradicting fields and for architectures that we do not know. What
/// passes has fewer than 2^56 elements in at most a million tensors, so later sums do not overflow.
[[nodiscard]] ModelConfig parse_config(std::string_view json_text, const std::string& file);

/// The config.json text that parse_config reads back to the same config.
[[nodiscard]] std::string config_to_json(const ModelConfig& config);

/// The config with its first `layers` layers only. Throws a request error that names `model` unless
/// 1 <= layers <= config.layers.
[[nodiscard]] ModelConfig keep_first_layers(ModelConfig config, uint64_t layers,
                                            const std::string& model);

}  // namespace awex
