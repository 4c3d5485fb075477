#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layout/layout.hpp"
#include "model/catalogue.hpp"
#include "transfer/kernels.hpp"

namespace awex {

/// Digest views of all shards of a rank whose weights region begins at `base`, of their bits as
/// inference holds them: `catalogue` is the held one (layout/held_catalogue.hpp), and a trainer's
/// layout has scales (layout/trainer_scales.hpp). Slot t sums the
/// first copy (replica 0) of tensor t, slot T + t all further copies, T being the number of
/// tensors.
[[nodiscard]] std::vector<DigestView> shard_views(const Catalogue& catalogue,
                                                  const RankLayout& layout, const std::byte* base);

/// Slots of shard_views.
[[nodiscard]] uint32_t digest_slots(const Catalogue& catalogue);

/// Sums of shard_views over all ranks of one role: T first copies, then T sums of further copies.
using RoleSums = std::span<const uint64_t>;

/// How two roles' digests compare.
struct DigestComparison {
  uint64_t model = 0;                      ///< Of inference's first copy.
  std::vector<uint32_t> wrong_tensors;     ///< Inference differs from the trainer.
  std::vector<uint32_t> diverged_tensors;  ///< The trainer's own replicas differ.
};

/// Compares every copy that inference holds with the trainer's first copy, and the trainer's
/// further copies with its first. `*_copies` are from RoleShards::copies_of_tensors: c - 1 further
/// copies of equal content add up to c - 1 times the first.
[[nodiscard]] DigestComparison compare_digests(const Catalogue& catalogue, RoleSums trainer,
                                               const std::vector<uint64_t>& trainer_copies,
                                               RoleSums inference,
                                               const std::vector<uint64_t>& inference_copies);

}  // namespace awex
