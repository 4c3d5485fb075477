#pragma once

#include <type_traits>
#include <utility>

#include "model/digest.hpp"
#include "transfer/kernels/cuda_tiles.hpp"

namespace awex::cuda {

// atomicAdd takes no other 64-bit type.
using Atomic = unsigned long long;
static_assert(sizeof(Atomic) == sizeof(uint64_t));

// As types, because device code cannot index an array that only the host has.
template <size_t kLane>
using LaneKey = std::integral_constant<uint64_t, kLaneKeys[kLane]>;

using Lanes = std::make_index_sequence<kDigestLanes>;

/// Adds what all threads of a block have to `*total`, with one atomic.
inline __device__ void add_block_sum(uint64_t sum, Atomic* total) {
  constexpr uint32_t kWarpThreads = 32;
  __shared__ uint64_t warp_sums[kTileThreads / kWarpThreads];
  for (uint32_t distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(0xffffffffU, sum, distance);
  }
  if (threadIdx.x % kWarpThreads == 0) warp_sums[threadIdx.x / kWarpThreads] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint64_t block_sum = 0;
  for (const uint64_t warp_sum : warp_sums) block_sum += warp_sum;
  atomicAdd(total, static_cast<Atomic>(block_sum));
}

}  // namespace awex::cuda
