#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "transfer/kernels/conversion.hpp"
#include "transfer/kernels/cuda_tiles.hpp"

/// The launches behind transfer/kernels/cuda_kernels.hpp for elements that change their dtype, in
/// terms that nvcc and the host compiler share. All queue on `stream`, touch device memory only and
/// return the launch's result. Conversions have passed check_conversion.

namespace awex::cuda {

/// Elements that one thread converts at once: a unit. In a digest they are a group with one key.
inline constexpr uint32_t kUnitElements = 8;

/// Rows of elements and what is made of them.
struct ConvertedRows {
  const std::byte* data = nullptr;
  uint64_t row_stride = 0;  ///< Bytes.
  uint64_t cols = 0;        ///< Elements.
  Conversion conversion;
  bool whole_units = false;  ///< All units are whole, where 16-byte accesses can reach them.
};

/// A converting copy as the device reads it. A unit is kUnitElements of a row, from its first on.
struct ConvertDescriptor {
  ConvertedRows from;
  std::byte* to = nullptr;
  uint64_t to_stride = 0;  ///< Bytes.
  UnitGrid grid;
  uint64_t first_byte = 0;  ///< Position of its first byte among all written bytes of the batch.
};

/// A converted digest view as the device reads it. A unit is a group of canonical elements.
struct ConvertedDigestDescriptor {
  ConvertedRows from;
  UnitGrid grid;
  uint64_t first_index = 0;
  uint64_t canonical_cols = 0;
  uint64_t key = 0;
  uint32_t sum = 0;
};

/// A view whose scales are searched, as the device reads it. A unit is a scale.
struct ScaleDescriptor {
  const std::byte* data = nullptr;
  uint64_t row_stride = 0;  ///< Elements.
  DType dtype = DType::kBf16;
  BlockCuts rows;
  BlockCuts cols;
  ScaleGrid scales;
  UnitGrid grid;
};

cudaError_t launch_convert(const ConvertDescriptor* descriptors, const uint32_t* owners,
                           uint32_t tiles, cudaStream_t stream);

/// Lowers `*first` to the position of the first byte that launch_convert would write otherwise.
cudaError_t launch_compare_converted(const ConvertDescriptor* descriptors, const uint32_t* owners,
                                     uint32_t tiles, uint64_t* first, cudaStream_t stream);

/// Adds what every view sums up to its one of `sums`.
cudaError_t launch_digest_converted(const ConvertedDigestDescriptor* descriptors,
                                    const uint32_t* owners, uint32_t tiles, uint64_t* sums,
                                    cudaStream_t stream);

/// Writes the largest absolute value of every block. A tile is one unit.
cudaError_t launch_amax(const ScaleDescriptor* descriptors, const uint32_t* owners, uint32_t tiles,
                        cudaStream_t stream);

/// Turns largest absolute values into scales. Tiles are of kTileUnits.
cudaError_t launch_scales(const ScaleDescriptor* descriptors, const uint32_t* owners,
                          uint32_t tiles, cudaStream_t stream);

}  // namespace awex::cuda
