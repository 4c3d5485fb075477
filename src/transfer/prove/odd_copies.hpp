#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "transfer/prove/tensor_digests.hpp"

namespace awex {

/// The digest of what one rank holds of one copy of a tensor.
struct CopySum {
  int32_t rank = 0;
  HeldCopy held;
  uint64_t sum = 0;
};
static_assert(std::is_trivially_copyable_v<CopySum>);

/// Which ranks hold other bytes of a tensor than they should, in ascending order. `copies` are all
/// that the ranks of one role hold of it. `truth` is the digest that every copy should have;
/// without one it is what more than half of the copies have. Empty where nobody can tell: no copy
/// is right, or no digest is that of most. In a wrong copy that is spread over ranks, those are
/// named whose boxes differ from the same boxes in a right copy, and those whose boxes no right
/// copy has. Pure.
[[nodiscard]] std::vector<int> odd_ranks(std::span<const CopySum> copies,
                                         std::optional<uint64_t> truth);

}  // namespace awex
