#include "transfer/kernels/kernels.hpp"

#include "transfer/kernels/host_kernels.hpp"
#if AWEX_WITH_CUDA
#include "transfer/kernels/cuda_kernels.hpp"
#endif

namespace awex {

std::unique_ptr<Kernels> make_kernels(Device& device, [[maybe_unused]] size_t host_threads) {
#if AWEX_WITH_CUDA
  if (device.kind() == BackendKind::kCuda) return make_cuda_kernels(device);
#endif
  return make_host_kernels(device, host_threads);
}

}  // namespace awex
