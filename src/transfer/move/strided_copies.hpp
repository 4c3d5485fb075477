#pragma once

#include <cstddef>

#include "plan/plan_copies.hpp"
#include "transfer/kernels/kernels.hpp"

/// Merged copies as the kernels see them. `trainer` is the base of the source's region, `own` that
/// of the target's, `packed` where the rows of the copy lie on their way, one after the other.
/// Elements change their dtype as they leave the trainer.

namespace awex {

[[nodiscard]] StridedCopy straight_copy(const MergedCopy& copy, const std::byte* trainer,
                                        std::byte* own);
[[nodiscard]] StridedCopy packing_copy(const MergedCopy& copy, const std::byte* trainer,
                                       std::byte* packed);
[[nodiscard]] StridedCopy unpacking_copy(const MergedCopy& copy, const std::byte* packed,
                                         std::byte* own);

}  // namespace awex
