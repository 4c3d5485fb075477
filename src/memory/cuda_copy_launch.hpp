#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

/// The launch behind CopyQueue::copy_by_kernel, in terms that nvcc and the host compiler share.

namespace awex::cuda {

/// What a thread moves at once.
inline constexpr uint64_t kCopyUnitBytes = 16;

/// Copies `units` units on `stream`; `from` may be pinned host memory that the device reaches. Both
/// addresses are multiples of kCopyUnitBytes. Returns the launch's result.
cudaError_t launch_copy_units(std::byte* to, const std::byte* from, uint64_t units,
                              cudaStream_t stream);

}  // namespace awex::cuda
