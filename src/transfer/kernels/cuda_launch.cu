#include "transfer/kernels/cuda_launch.hpp"

#include "transfer/kernels/cuda_differences.cuh"
#include "transfer/kernels/cuda_digest.cuh"
#include "transfer/kernels/cuda_plain_tiles.cuh"
#include "transfer/kernels/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

// Four blocks an SM: what eight 16-byte values a thread leave room for in the registers.
__global__ void __launch_bounds__(kTileThreads, 4)
    copy_kernel(const CopyPiece* pieces, const uint32_t* owners) {
  const CopyPiece& piece = pieces[owners[blockIdx.x]];
  copy_tile<PassingBy>(piece, blockIdx.x - piece.grid.first_tile);
}

template <class Vector>
__device__ void compare_tile(const CopyPiece& piece, uint64_t* first) {
  UnitWalk walk(piece.grid);
  uint64_t position = kNoDifference;
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
    if (!walk.inside()) break;
    const auto* from = source_of<Vector>(piece, walk);
    const auto* to = target_of<Vector>(piece, walk);
    const uint32_t byte = first_differing_byte(__ldcs(from), __ldcs(to));
    if (byte == sizeof(Vector) || position != kNoDifference) continue;
    position = piece.first_byte + walk.unit() * sizeof(Vector) + byte;
  }
  if (position != kNoDifference) lower(first, position);
}

__global__ void __launch_bounds__(kTileThreads)
    compare_kernel(const CopyPiece* pieces, const uint32_t* owners, uint64_t* first) {
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
                        cudaStream_t stream) {
  return launch_tiles(copy_kernel, tiles, stream, pieces, owners);
}

cudaError_t launch_compare(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles,
                           uint64_t* first, cudaStream_t stream) {
  return launch_tiles(compare_kernel, tiles, stream, pieces, owners, first);
}

cudaError_t launch_digest(const DigestPiece* pieces, const uint32_t* owners, uint32_t tiles,
                          uint64_t* sums, cudaStream_t stream) {
  return launch_tiles(digest_kernel, tiles, stream, pieces, owners,
                      reinterpret_cast<Atomic*>(sums));
}

}  // namespace awex::cuda
