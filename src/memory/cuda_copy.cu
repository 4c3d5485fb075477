#include "memory/cuda_copy_launch.hpp"

namespace awex::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kUnitsPerThread = 8;
constexpr uint32_t kBlockUnits = kThreads * kUnitsPerThread;
static_assert(sizeof(uint4) == kCopyUnitBytes);

/// All of a thread's loads are in flight before its first store: reads over the link take long.
__global__ void __launch_bounds__(kThreads)
    copy_kernel(uint4* to, const uint4* from, uint64_t units) {
  const uint64_t first = uint64_t{blockIdx.x} * kBlockUnits + threadIdx.x;
  uint4 values[kUnitsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    const uint64_t unit = first + i * kThreads;
    if (unit < units) values[i] = __ldcs(from + unit);
  }
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    const uint64_t unit = first + i * kThreads;
    if (unit < units) __stcs(to + unit, values[i]);
  }
}

}  // namespace

cudaError_t launch_copy_units(std::byte* to, const std::byte* from, uint64_t units,
                              cudaStream_t stream) {
  if (units == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<uint32_t>((units + kBlockUnits - 1) / kBlockUnits));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, copy_kernel, reinterpret_cast<uint4*>(to),
                            reinterpret_cast<const uint4*>(from), units);
}

}  // namespace awex::cuda
