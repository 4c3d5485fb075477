#include <cuda/atomic>

#include "transfer/cuda_signals.hpp"

namespace awex::cuda {
namespace {

constexpr uint32_t kSignalThreads = 32;

using SignalWord = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_system>;

__global__ void __launch_bounds__(kSignalThreads)
    set_kernel(const Signal* signals, uint32_t count, uint32_t base) {
  __threadfence_system();
  for (uint32_t i = threadIdx.x; i < count; i += kSignalThreads) {
    SignalWord(*signals[i].at).store(base + signals[i].value, ::cuda::std::memory_order_release);
  }
}

__global__ void __launch_bounds__(kSignalThreads)
    await_kernel(const Signal* signals, uint32_t count, uint32_t base) {
  constexpr uint32_t kPauseNs = 200;
  for (uint32_t i = threadIdx.x; i < count; i += kSignalThreads) {
    const SignalWord word(*signals[i].at);
    const uint32_t value = base + signals[i].value;
    while (static_cast<int32_t>(word.load(::cuda::std::memory_order_acquire) - value) < 0) {
      __nanosleep(kPauseNs);
    }
  }
}

cudaError_t launch(void (*kernel)(const Signal*, uint32_t, uint32_t), const Signal* signals,
                   uint32_t count, uint32_t base, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kSignalThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, signals, count, base);
}

}  // namespace

cudaError_t launch_set_signals(const Signal* signals, uint32_t count, uint32_t base,
                               cudaStream_t stream) {
  return launch(set_kernel, signals, count, base, stream);
}

cudaError_t launch_await_signals(const Signal* signals, uint32_t count, uint32_t base,
                                 cudaStream_t stream) {
  return launch(await_kernel, signals, count, base, stream);
}

}  // namespace awex::cuda
