#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "transfer/kernels.hpp"
#include "transfer/launch_order.hpp"

namespace awex {

/// What kernel_bench varies.
struct ProvenTuning {
  cuda::LaunchShape shape{16, 64};
  /// Whether what is copied stays in the cache for views of it; else it displaces nothing.
  bool keeps_sources = true;
};

/// Kernels::prepare_proven_copies on a stream of a CUDA device: copies that convert, then one
/// launch of the other copies and the views behind them, then views that convert. Takes 4 bytes of
/// device memory for each 32 KiB of copies and of views, and about 100 bytes for each of them.
[[nodiscard]] std::unique_ptr<DigestBatch> make_cuda_proven_copies(
    std::span<const StridedCopy> copies, std::span<const DigestView> views, uint32_t slots,
    cudaStream_t stream, const ProvenTuning& tuning = {});

}  // namespace awex
