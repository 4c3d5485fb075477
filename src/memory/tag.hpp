#pragma once

#include <array>
#include <cstdint>

#include "base/named.hpp"

namespace awex {

/// What memory is for.
enum class Tag : uint8_t { kWeights, kOptimizer, kKvCache };

inline constexpr std::array kAllTags{Tag::kWeights, Tag::kOptimizer, Tag::kKvCache};
inline constexpr std::array kNamedTags{Named<Tag>{"weights", Tag::kWeights},
                                       Named<Tag>{"optimizer", Tag::kOptimizer},
                                       Named<Tag>{"kv_cache", Tag::kKvCache}};

/// "weights", "optimizer" or "kv_cache".
[[nodiscard]] constexpr const char* tag_name(Tag tag) { return name_of(kNamedTags, tag); }

}  // namespace awex
