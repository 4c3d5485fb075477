#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/kernels/cuda_convert_launch.hpp"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/kernels/kernels.hpp"

/// What the device reads instead of a caller's copies and views: each in the widest accesses that
/// its addresses allow, as one row where rows have no gaps. Their tiles are numbered later
/// (cuda_batch.hpp). What keeps its dtype and what changes it are in lists of their own, each in
/// the caller's order. All throw a run-time error for what the kernels cannot do.

namespace awex::cuda {

/// Bytes that a batch writes before each of its copies: CopyDescriptor::first_byte.
[[nodiscard]] std::vector<uint64_t> bytes_before(std::span<const StridedCopy> copies);

[[nodiscard]] std::vector<CopyDescriptor> describe_copies(std::span<const StridedCopy> copies);
[[nodiscard]] std::vector<ConvertDescriptor> describe_converting_copies(
    std::span<const StridedCopy> copies);

[[nodiscard]] std::vector<DigestDescriptor> describe_views(std::span<const DigestView> views,
                                                           uint32_t sum_count);
[[nodiscard]] std::vector<ConvertedDigestDescriptor> describe_converted_views(
    std::span<const DigestView> views, uint32_t sum_count);

}  // namespace awex::cuda
