#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model/catalogue.hpp"

namespace awex {

/// Catalogue indices of a gated MLP's matrices.
struct MlpTensors {
  uint32_t gate = 0;
  uint32_t up = 0;
  uint32_t down = 0;
};

/// Of grouped-query attention's projections, or of their biases.
struct QkvTensors {
  uint32_t q = 0;
  uint32_t k = 0;
  uint32_t v = 0;
};

/// Of multi-head latent attention.
struct LatentTensors {
  std::optional<uint32_t> q_down{};  ///< Without it q_up projects at once.
  std::optional<uint32_t> q_norm{};  ///< Behind q_down.
  uint32_t q_up = 0;
  uint32_t kv_down = 0;
  uint32_t kv_norm = 0;  ///< Behind kv_down.
  uint32_t kv_up = 0;
};

/// Of a layer with experts.
struct MoeTensors {
  uint32_t router = 0;
  std::optional<uint32_t> router_bias{};
  std::optional<MlpTensors> shared{};
  std::optional<uint32_t> shared_gate{};  ///< TensorRole::kSharedExpertGate.
  uint32_t experts = 0;
  MlpTensors first_expert;

  /// Experts follow each other, gate, up and down of each.
  [[nodiscard]] MlpTensors expert(uint32_t e) const {
    return {first_expert.gate + 3 * e, first_expert.up + 3 * e, first_expert.down + 3 * e};
  }
};

/// Where the catalogue has a layer's tensors. What a model lacks is absent.
struct LayerTensors {
  uint32_t input_norm = 0;
  uint32_t post_attention_norm = 0;
  uint32_t o = 0;
  std::optional<uint32_t> o_bias{};
  std::optional<QkvTensors> qkv{};  ///< Either this or latent.
  std::optional<QkvTensors> qkv_bias{};
  std::optional<uint32_t> q_norm{};
  std::optional<uint32_t> k_norm{};
  std::optional<LatentTensors> latent{};
  std::optional<MlpTensors> mlp{};  ///< Either this or moe.
  std::optional<MoeTensors> moe{};
};

/// Where the catalogue has all of a model's tensors.
struct ModelTensors {
  uint32_t embedding = 0;
  uint32_t final_norm = 0;
  std::optional<uint32_t> head{};  ///< Unless it is the embedding.
  std::vector<LayerTensors> layers;
};

/// Reads the roles of all tensors, once, so that layouts of many ranks need no search. Scales are
/// left out. Throws a run-time error that names the tensor, or the role and the layer, for a
/// catalogue that no family makes: a role twice or missing, experts out of order.
[[nodiscard]] ModelTensors find_tensors(const Catalogue& catalogue);

}  // namespace awex
