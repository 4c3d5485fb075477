#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "transfer/kernels/cuda_tiles.hpp"

/// The launches behind transfer/kernels/cuda_kernels.hpp, in terms that nvcc and the host compiler
/// share. All queue on `stream`, touch device memory only and return the launch's result.

namespace awex::cuda {

/// A strided copy as the device reads it.
struct CopyDescriptor {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  uint64_t from_stride = 0;  ///< Bytes.
  uint64_t to_stride = 0;
  UnitGrid grid;            ///< Units of `width` bytes.
  uint64_t first_byte = 0;  ///< Position of its first byte among all bytes of the batch.
  uint32_t width = 0;       ///< 1, 2, 4, 8 or 16; divides both addresses and strides.
};

/// A digest view as the device reads it. A unit is a group of 8 canonical elements that share a
/// key.
struct DigestDescriptor {
  const std::byte* data = nullptr;
  uint64_t row_stride = 0;  ///< Elements.
  UnitGrid grid;
  uint64_t cols = 0;  ///< Elements.
  uint64_t first_index = 0;
  uint64_t canonical_cols = 0;
  uint64_t key = 0;
  uint32_t sum = 0;
  uint32_t element_size = 0;
  bool whole_groups = false;  ///< Rows begin and end with a group, which aligned loads can read.
};

/// Position of no difference.
inline constexpr uint64_t kNoDifference = ~uint64_t{0};

cudaError_t launch_copy(const CopyDescriptor* descriptors, const uint32_t* owners, uint32_t tiles,
                        cudaStream_t stream);

/// Lowers `*first` to the position of the first byte in which the two sides differ.
cudaError_t launch_compare(const CopyDescriptor* descriptors, const uint32_t* owners,
                           uint32_t tiles, uint64_t* first, cudaStream_t stream);

/// Adds what every view sums up to its one of `sums`.
cudaError_t launch_digest(const DigestDescriptor* descriptors, const uint32_t* owners,
                          uint32_t tiles, uint64_t* sums, cudaStream_t stream);

/// Stores numbers in pinned host memory. The engines that copy have no part in it: a large copy
/// that runs there does not hold it up.
cudaError_t launch_store(const uint64_t* from, uint64_t* to, uint32_t count, cudaStream_t stream);

}  // namespace awex::cuda
