#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "transfer/prove/tensor_digests.hpp"

namespace awex {

/// The digest of what one rank holds of one replica of a tensor.
struct ReplicaSum {
  int32_t rank = 0;
  HeldReplica held;
  uint64_t sum = 0;
};
static_assert(std::is_trivially_copyable_v<ReplicaSum>);

/// Which ranks hold other bytes of a tensor than they should, in ascending order. `replicas` are
/// all that the ranks of one role hold of it. `truth` is the digest that every replica should have;
/// without one it is what more than half of the replicas have. Empty where nobody can tell: no
/// replica is right, or no digest is that of most. In a wrong replica that is spread over ranks,
/// those are named whose boxes differ from the same boxes in a right replica, and those whose boxes
/// no right replica has. Pure.
[[nodiscard]] std::vector<int> odd_ranks(std::span<const ReplicaSum> replicas,
                                         std::optional<uint64_t> truth);

}  // namespace awex
