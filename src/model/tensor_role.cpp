#include "model/tensor_role.hpp"

#include <array>
#include <cstddef>

namespace awex {
namespace {

enum class Kind : uint8_t { kNorm, kProjection, kOther };

struct Description {
  TensorRole role;
  const char* name;
  Kind kind = Kind::kOther;
};

/// In the order of the enumeration.
constexpr std::array kDescriptions{
    Description{TensorRole::kNone, "none"},
    Description{TensorRole::kEmbedding, "embedding"},
    Description{TensorRole::kFinalNorm, "final_norm", Kind::kNorm},
    Description{TensorRole::kHead, "head"},
    Description{TensorRole::kInputNorm, "input_norm", Kind::kNorm},
    Description{TensorRole::kPostAttentionNorm, "post_attention_norm", Kind::kNorm},
    Description{TensorRole::kQ, "q", Kind::kProjection},
    Description{TensorRole::kK, "k", Kind::kProjection},
    Description{TensorRole::kV, "v", Kind::kProjection},
    Description{TensorRole::kQBias, "q_bias"},
    Description{TensorRole::kKBias, "k_bias"},
    Description{TensorRole::kVBias, "v_bias"},
    Description{TensorRole::kQNorm, "q_norm", Kind::kNorm},
    Description{TensorRole::kKNorm, "k_norm", Kind::kNorm},
    Description{TensorRole::kQDown, "q_down", Kind::kProjection},
    Description{TensorRole::kQDownNorm, "q_down_norm", Kind::kNorm},
    Description{TensorRole::kQUp, "q_up", Kind::kProjection},
    Description{TensorRole::kKvDown, "kv_down", Kind::kProjection},
    Description{TensorRole::kKvDownNorm, "kv_down_norm", Kind::kNorm},
    Description{TensorRole::kKvUp, "kv_up", Kind::kProjection},
    Description{TensorRole::kO, "o", Kind::kProjection},
    Description{TensorRole::kOBias, "o_bias"},
    Description{TensorRole::kGate, "gate", Kind::kProjection},
    Description{TensorRole::kUp, "up", Kind::kProjection},
    Description{TensorRole::kDown, "down", Kind::kProjection},
    Description{TensorRole::kRouter, "router"},
    Description{TensorRole::kRouterBias, "router_bias"},
    Description{TensorRole::kExpertGate, "expert_gate", Kind::kProjection},
    Description{TensorRole::kExpertUp, "expert_up", Kind::kProjection},
    Description{TensorRole::kExpertDown, "expert_down", Kind::kProjection},
    Description{TensorRole::kSharedGate, "shared_gate", Kind::kProjection},
    Description{TensorRole::kSharedUp, "shared_up", Kind::kProjection},
    Description{TensorRole::kSharedDown, "shared_down", Kind::kProjection},
    Description{TensorRole::kSharedExpertGate, "shared_expert_gate"},
    Description{TensorRole::kScales, "scales"}};

constexpr bool all_in_order() {
  for (size_t i = 0; i < kDescriptions.size(); ++i) {
    if (static_cast<size_t>(kDescriptions[i].role) != i) return false;
  }
  return kDescriptions.size() == static_cast<size_t>(TensorRole::kScales) + 1;
}
static_assert(all_in_order());

const Description& description_of(TensorRole role) {
  return kDescriptions.at(static_cast<size_t>(role));
}

}  // namespace

const char* tensor_role_name(TensorRole role) { return description_of(role).name; }

bool is_norm(TensorRole role) { return description_of(role).kind == Kind::kNorm; }

bool is_projection(TensorRole role) { return description_of(role).kind == Kind::kProjection; }

}  // namespace awex
