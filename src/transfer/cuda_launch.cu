#include "transfer/cuda_launch.hpp"

#include "transfer/cuda_digest.cuh"
#include "transfer/cuda_plain_tiles.cuh"
#include "transfer/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

// Four blocks an SM: what eight 16-byte values a thread leave room for in the registers.
__global__ void __launch_bounds__(kTileThreads, 4)
    copy_kernel(const CopyPiece* pieces, const uint32_t* owners) {
  const CopyPiece& piece = pieces[owners[blockIdx.x]];
  copy_tile<PassingBy>(piece, blockIdx.x - piece.grid.first_tile);
}

/// The same by fewer blocks than tiles, for pieces of width 16; the loop takes a few registers.
__global__ void __launch_bounds__(kTileThreads, 3)
    few_blocks_copy_kernel(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles) {
#pragma unroll 1
  for (uint32_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const CopyPiece& piece = pieces[owners[block]];
    copy_units<uint4, PassingBy>(piece, block - piece.grid.first_tile);
  }
}

__device__ bool same(uint4 a, uint4 b) {
  return ((a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w)) == 0;
}
__device__ bool same(uint2 a, uint2 b) { return ((a.x ^ b.x) | (a.y ^ b.y)) == 0; }
__device__ bool same(unsigned int a, unsigned int b) { return a == b; }

template <class Vector>
__device__ uint32_t first_differing_byte(const Vector* a, const Vector* b) {
  const auto* left = reinterpret_cast<const unsigned char*>(a);
  const auto* right = reinterpret_cast<const unsigned char*>(b);
  uint32_t at = 0;
  while (at + 1 < sizeof(Vector) && left[at] == right[at]) ++at;
  return at;
}

template <class Vector>
__device__ void compare_tile(const CopyPiece& piece, Atomic* first) {
  UnitWalk walk(piece.grid);
  uint64_t position = kNoDifference;
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
    if (!walk.inside()) break;
    const auto* from = source_of<Vector>(piece, walk);
    const auto* to = target_of<Vector>(piece, walk);
    if (same(__ldcs(from), __ldcs(to)) || position != kNoDifference) continue;
    position = piece.first_byte + walk.unit() * sizeof(Vector) + first_differing_byte(from, to);
  }
  if (position != kNoDifference) atomicMin(first, static_cast<Atomic>(position));
}

__global__ void __launch_bounds__(kTileThreads)
    compare_kernel(const CopyPiece* pieces, const uint32_t* owners, Atomic* first) {
  const CopyPiece& piece = pieces[owners[blockIdx.x]];
  if (piece.width == 16) {
    compare_tile<uint4>(piece, first);
  } else if (piece.width == 8) {
    compare_tile<uint2>(piece, first);
  } else if (piece.width == 4) {
    compare_tile<unsigned int>(piece, first);
  } else if (piece.width == 2) {
    compare_tile<unsigned short>(piece, first);
  } else {
    compare_tile<unsigned char>(piece, first);
  }
}

// Four blocks an SM: on an H100 3.10 TB/s are read, with three 2.86.
__global__ void __launch_bounds__(kTileThreads, 4)
    digest_kernel(const DigestPiece* pieces, const uint32_t* owners, Atomic* sums) {
  const DigestPiece& piece = pieces[owners[blockIdx.x]];
  const uint64_t sum =
      digest_tile<PassingBy, kUnitsPerThread>(piece, blockIdx.x - piece.grid.first_tile);
  add_block_sum(sum, sums + piece.slot);
}

}  // namespace

cudaError_t launch_copy(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles,
                        uint32_t most_blocks, cudaStream_t stream) {
  if (most_blocks == kAnyBlocks || tiles <= most_blocks) {
    return launch_tiles(copy_kernel, tiles, stream, pieces, owners);
  }
  return launch_tiles(few_blocks_copy_kernel, most_blocks, stream, pieces, owners, tiles);
}

cudaError_t launch_compare(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles,
                           uint64_t* first, cudaStream_t stream) {
  return launch_tiles(compare_kernel, tiles, stream, pieces, owners,
                      reinterpret_cast<Atomic*>(first));
}

cudaError_t launch_digest(const DigestPiece* pieces, const uint32_t* owners, uint32_t tiles,
                          uint64_t* sums, cudaStream_t stream) {
  return launch_tiles(digest_kernel, tiles, stream, pieces, owners,
                      reinterpret_cast<Atomic*>(sums));
}

}  // namespace awex::cuda
