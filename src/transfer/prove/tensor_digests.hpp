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

/// What a rank holds of one copy (replica) of a tensor: all of it, or the boxes of its shards.
struct HeldCopy {
  uint32_t tensor = 0;
  uint32_t replica = 0;
  uint64_t boxes = 0;  ///< A hash of the boxes, whatever their order.

  constexpr bool operator==(const HeldCopy&) const = default;
};

/// The copies that a rank holds shards of, each once, in the order of their first shards.
[[nodiscard]] std::vector<HeldCopy> held_copies(const RankLayout& layout);

/// Digest views of all shards of a rank whose weights lie in `memory`, several for a shard that
/// lies in several segments, of their bits as inference holds them: `catalogue` is the held one
/// (layout/held_catalogue.hpp), and a trainer's layout has scales (layout/trainer_scales.hpp). Slot
/// i sums entry i of held_copies(layout).
[[nodiscard]] std::vector<DigestView> shard_views(const Catalogue& catalogue,
                                                  const RankLayout& layout,
                                                  const PlacedMemory& memory);

/// The odd factor of a further copy (replica > 0) in the sum over all further copies of a tensor:
/// errors of several copies do not cancel, as they could in a plain sum (docs/digest.md).
[[nodiscard]] uint64_t replica_key(uint32_t replica);

/// What one rank adds to its role's sums: T digests of first copies, then T sums over the further
/// ones of replica_key times digest, mod 2^64; T is the number of tensors. `sums` are by entry of
/// `copies`. Added over all ranks of a role they are RoleSums.
[[nodiscard]] std::vector<uint64_t> rank_terms(size_t tensors, std::span<const HeldCopy> copies,
                                               std::span<const uint64_t> sums);
using RoleSums = std::span<const uint64_t>;

/// How two roles' digests compare.
struct DigestComparison {
  uint64_t model = 0;                   ///< Of inference's first copy.
  std::vector<uint32_t> wrong_tensors;  ///< A copy of inference differs from the trainer's first.
  std::vector<uint32_t> diverged_tensors;  ///< The trainer's own copies differ.
};

/// Compares every copy that inference holds with the trainer's first copy, and the trainer's
/// further copies with its first. `*_copies` are from RoleShards::copies_of_tensors; a tensor's
/// copies have the replica numbers from 0 on.
[[nodiscard]] DigestComparison compare_digests(const Catalogue& catalogue, RoleSums trainer,
                                               const std::vector<uint64_t>& trainer_copies,
                                               RoleSums inference,
                                               const std::vector<uint64_t>& inference_copies);

}  // namespace awex
