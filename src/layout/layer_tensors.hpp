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
  std::optional<uint32_t> q_down{};  ///< q_a_proj; without it q_up is q_proj.
  std::optional<uint32_t> q_norm{};  ///< q_a_layernorm.
  uint32_t q_up = 0;                 ///< q_b_proj or q_proj.
  uint32_t kv_down = 0;              ///< kv_a_proj_with_mqa.
  uint32_t kv_norm = 0;              ///< kv_a_layernorm.
  uint32_t kv_up = 0;                ///< kv_b_proj.
};

/// Of a layer with experts.
struct MoeTensors {
  uint32_t router = 0;
  std::optional<uint32_t> router_bias{};  ///< e_score_correction_bias.
  std::optional<MlpTensors> shared{};
  uint32_t experts = 0;
  MlpTensors first_expert;
  uint32_t stride = 0;  ///< From an expert's index to that of the next.

  [[nodiscard]] MlpTensors expert(uint32_t e) const {
    return {first_expert.gate + e * stride, first_expert.up + e * stride,
            first_expert.down + e * stride};
  }
};

/// Where the catalogue has a layer's tensors. What a model lacks is absent.
struct LayerTensors {
  uint32_t input_norm = 0;
  uint32_t post_attention_norm = 0;
  uint32_t o = 0;
  std::optional<QkvTensors> qkv{};  ///< Either this or latent.
  std::optional<QkvTensors> qkv_bias{};
  std::optional<uint32_t> q_norm{};
  std::optional<uint32_t> k_norm{};
  std::optional<LatentTensors> latent{};
  std::optional<MlpTensors> mlp{};  ///< Either this or moe.
  std::optional<MoeTensors> moe{};
};

/// Looks all layers up once, so that layouts of many ranks need no search by name. Throws a request
/// error that names a tensor that the catalogue lacks.
[[nodiscard]] std::vector<LayerTensors> find_layer_tensors(const Catalogue& catalogue);

}  // namespace awex
