#pragma once

#include <cstdint>

namespace awex {

/// What a tensor is for, whatever its family calls it. A layer has at most one tensor of a role, an
/// expert at most one of those for experts.
enum class TensorRole : uint8_t {
  kNone,  ///< Of a tensor that no family lists.
  kEmbedding,
  kFinalNorm,
  kHead,
  kInputNorm,
  kPostAttentionNorm,

  // Grouped-query attention.
  kQ,
  kK,
  kV,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,

  // Multi-head latent attention. Where q is projected at once, that is kQUp.
  kQDown,
  kQDownNorm,
  kQUp,
  kKvDown,
  kKvDownNorm,
  kKvUp,

  // The output projection of either.
  kO,
  kOBias,

  // The MLP of a layer without experts.
  kGate,
  kUp,
  kDown,

  // A layer with experts.
  kRouter,
  kRouterBias,  ///< Added to scores when experts are chosen; fp32.
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kSharedExpertGate,  ///< One row: how much of the shared experts a token takes.

  kScales,  ///< Of the blocks of a quantised tensor.
};

/// "q", "router_bias": for messages.
[[nodiscard]] const char* tensor_role_name(TensorRole role);

/// Whether it is a norm's weight.
[[nodiscard]] bool is_norm(TensorRole role);

/// Whether it is a matrix of attention, an MLP or an expert: what fp8 quantises. Neither routers
/// nor the gate of shared experts are.
[[nodiscard]] bool is_projection(TensorRole role);

}  // namespace awex
