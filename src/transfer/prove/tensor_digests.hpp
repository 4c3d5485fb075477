#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "layout/layout.hpp"
#include "memory/placed_memory.hpp"
#include "model/catalogue.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// What a rank holds of one replica of a tensor: all of it, or the boxes of its shards.
struct HeldReplica {
  uint32_t tensor = 0;
  uint32_t replica = 0;
  uint64_t boxes = 0;  ///< A hash of the boxes, whatever their order.

  constexpr bool operator==(const HeldReplica&) const = default;
};

/// The replicas that a rank holds shards of, each once, in the order of their first shards.
[[nodiscard]] std::vector<HeldReplica> held_replicas(const RankLayout& layout);

/// Digest views of all shards of a rank whose weights lie in `memory`, several for a shard that
/// lies in several segments, of their bits as inference holds them: `catalogue` is the held one
/// (layout/held_catalogue.hpp), and a trainer's layout has scales (layout/trainer_scales.hpp). Sum
/// i is of entry i of held_replicas(layout).
[[nodiscard]] std::vector<DigestView> shard_views(const Catalogue& catalogue,
                                                  const RankLayout& layout,
                                                  const PlacedMemory& memory);

/// The odd factor of a further replica (number > 0) in the sum over all further replicas of a
/// tensor: errors of several replicas do not cancel, as they could in a plain sum (docs/digest.md).
[[nodiscard]] uint64_t replica_key(uint32_t replica);

/// What one rank adds to its role's sums: T digests of first replicas, then T sums over the further
/// ones of replica_key times digest, mod 2^64; T is the number of tensors. `sums` are by entry of
/// `replicas`. Added over all ranks of a role they are RoleSums.
[[nodiscard]] std::vector<uint64_t> rank_terms(size_t tensors,
                                               std::span<const HeldReplica> replicas,
                                               std::span<const uint64_t> sums);
using RoleSums = std::span<const uint64_t>;

/// How two roles' digests compare.
struct DigestComparison {
  uint64_t model = 0;                      ///< Of inference's first replica.
  std::vector<uint32_t> wrong_tensors;     ///< Inference has one that is not the trainer's first.
  std::vector<uint32_t> diverged_tensors;  ///< The trainer's own replicas differ.
};

/// Compares every replica that inference holds with the trainer's first replica, and the trainer's
/// further replicas with its first. `*_replicas` are from RoleShards::replicas_of_tensors; a
/// tensor's replicas have the replica numbers from 0 on.
[[nodiscard]] DigestComparison compare_digests(const Catalogue& catalogue, RoleSums trainer,
                                               const std::vector<uint64_t>& trainer_replicas,
                                               RoleSums inference,
                                               const std::vector<uint64_t>& inference_replicas);

}  // namespace awex
