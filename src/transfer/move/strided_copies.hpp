#pragma once

#include <cstddef>
#include <vector>

#include "memory/placed_memory.hpp"
#include "plan/plan_copies.hpp"
#include "transfer/kernels/kernels.hpp"

/// Merged copies as the kernels see them. `trainer` is the source's memory, `own` the target's,
/// `packed` where the rows of the copy lie on their way, one after the other. Elements change their
/// dtype as they leave the trainer.
///
/// A copy must lie in one segment of each memory that it is given; the cuts make such parts of it,
/// which are the copy when packed one after the other. The scales of quantised elements must lie in
/// one segment.

namespace awex {

[[nodiscard]] std::vector<MergedCopy> cut_at_source(const MergedCopy& copy,
                                                    const PlacedMemory& trainer);
[[nodiscard]] std::vector<MergedCopy> cut_at_target(const MergedCopy& copy,
                                                    const PlacedMemory& own);
[[nodiscard]] std::vector<MergedCopy> cut_at_both(const MergedCopy& copy,
                                                  const PlacedMemory& trainer,
                                                  const PlacedMemory& own);

[[nodiscard]] StridedCopy straight_copy(const MergedCopy& copy, const PlacedMemory& trainer,
                                        const PlacedMemory& own);
[[nodiscard]] StridedCopy packing_copy(const MergedCopy& copy, const PlacedMemory& trainer,
                                       std::byte* packed);
[[nodiscard]] StridedCopy unpacking_copy(const MergedCopy& copy, const std::byte* packed,
                                         const PlacedMemory& own);

}  // namespace awex
