#pragma once

#include <cstdint>

namespace awex {

/// What a rank plays for its GPU.
enum class Role : uint8_t { kTrainer, kInference };

/// "trainer" or "inference".
[[nodiscard]] constexpr const char* role_name(Role role) {
  return role == Role::kTrainer ? "trainer" : "inference";
}

}  // namespace awex
