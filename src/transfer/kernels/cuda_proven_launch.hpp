#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/kernels/launch_order.hpp"

namespace awex::cuda {

/// A batch of copies and views as the device reads it: a LaunchOrder and its descriptors.
struct ProvenBatch {
  const LaunchStep* steps = nullptr;
  const CopyDescriptor* copies = nullptr;
  const DigestDescriptor* views = nullptr;
  uint32_t copy_count = 0;
  /// By stretch: tiles that copy and are not done yet. All, when the launch begins.
  uint32_t* left = nullptr;
  uint64_t* sums = nullptr;  ///< Of the views, by DigestDescriptor::sum.
};

/// Copies, and sums the views as they are after all copies, in one launch of `steps` steps.
cudaError_t launch_proven_copies(const ProvenBatch& batch, uint32_t steps, cudaStream_t stream);

}  // namespace awex::cuda
