#pragma once

#include <array>
#include <cstdint>

#include "base/named.hpp"

namespace awex {

/// What a rank plays for its GPU.
enum class Role : uint8_t { kTrainer, kInference };

inline constexpr std::array kNamedRoles{Named<Role>{"trainer", Role::kTrainer},
                                        Named<Role>{"inference", Role::kInference}};

/// "trainer" or "inference".
[[nodiscard]] constexpr const char* role_name(Role role) { return name_of(kNamedRoles, role); }

}  // namespace awex
