#include <cuda/atomic>

#include "transfer/kernels/cuda_digest.cuh"
#include "transfer/kernels/cuda_plain_tiles.cuh"
#include "transfer/kernels/cuda_proven_launch.hpp"
#include "transfer/kernels/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

using TilesLeft = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device>;

/// After a block's stores: they are there for every block that sees the count.
__device__ void count_down(uint32_t& left) {
  __syncthreads();
  if (threadIdx.x == 0) TilesLeft(left).fetch_sub(1, ::cuda::std::memory_order_release);
}

/// Returns when the copies of a step's stretches are done and what they stored can be read. They
/// are in blocks before this one and wait for nothing; the device starts blocks in the order of
/// their numbers, so they have begun and will end, however few blocks run at once.
__device__ void wait_for_copies(uint32_t* left, const LaunchStep& step) {
  constexpr uint32_t kPauseNs = 100;
  for (uint32_t i = step.first_stretch + threadIdx.x; i < step.end_stretch; i += kTileThreads) {
    while (TilesLeft(left[i]).load(::cuda::std::memory_order_acquire) != 0) __nanosleep(kPauseNs);
  }
  __syncthreads();
}

/// As many blocks an SM as copies alone have. A digest has half of a copy's loads in flight: it
/// needs registers for sums, and what it reads is near.
__global__ void __launch_bounds__(kTileThreads, 4) proven_copies_kernel(const ProvenBatch batch) {
  const LaunchStep step = batch.steps[blockIdx.x / kStepTiles];
  const uint64_t tile = step.first_tile + blockIdx.x % kStepTiles;
  if (step.item < batch.copy_count) {
    const CopyDescriptor descriptor = batch.copies[step.item];
    if (tile * kTileUnits >= descriptor.grid.units) return;
    copy_tile<Shared>(descriptor, tile);
    count_down(batch.left[step.first_stretch]);
  } else {
    const DigestDescriptor descriptor = batch.views[step.item - batch.copy_count];
    wait_for_copies(batch.left, step);
    if (tile * kTileUnits >= descriptor.grid.units) return;
    const uint64_t sum = digest_tile<Shared, kUnitsPerThread / 2>(descriptor, tile);
    add_block_sum(sum, reinterpret_cast<Atomic*>(batch.sums) + descriptor.sum);
  }
}

}  // namespace

cudaError_t launch_proven_copies(const ProvenBatch& batch, uint32_t steps, cudaStream_t stream) {
  return launch_tiles(proven_copies_kernel, steps * kStepTiles, stream, batch);
}

}  // namespace awex::cuda
