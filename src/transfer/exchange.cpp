#include "transfer/exchange.hpp"

#include "transfer/mpi_exchange.hpp"
#if AWEX_WITH_CUDA
#include "transfer/nccl_exchange.hpp"
#endif

namespace awex {

std::unique_ptr<Exchange> make_exchange(Job& job, [[maybe_unused]] Device& device,
                                        [[maybe_unused]] Kernels& kernels,
                                        [[maybe_unused]] bool share_gpu) {
#if AWEX_WITH_CUDA
  if (device.kind() == BackendKind::kCuda) {
    if (share_gpu) let_nccl_share_gpu(job.rank());
    return make_nccl_exchange(job, device, kernels);
  }
#endif
  return make_mpi_exchange(job);
}

}  // namespace awex
