#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "transfer/kernels/cuda_proven_launch.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// Of 2 to 20 MiB of lag and 0.5 to 8 MiB a stretch, 8 MiB and 0.5 MiB were fastest on an H100:
/// more than its blocks copy at once, and little beside its 50 MB of cache.
inline constexpr cuda::LaunchShape kProvenShape{.stretch_steps = 4, .lag_steps = 64};

/// Kernels::prepare_proven_copies on a stream of a CUDA device: copies that convert, then one
/// launch of the other copies and the views behind them, then views that convert. Takes 4 bytes of
/// device memory for each 32 KiB of copies and of views, and about 100 bytes for each of them.
[[nodiscard]] std::unique_ptr<DigestBatch> make_cuda_proven_copies(
    std::span<const StridedCopy> copies, std::span<const DigestView> views, uint32_t sum_count,
    cudaStream_t stream, const cuda::LaunchShape& shape = kProvenShape);

}  // namespace awex
