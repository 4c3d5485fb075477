#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "model/catalogue.hpp"
#include "model/dtype.hpp"
#include "model/input_file.hpp"

namespace awex {

/// Where the scales of an fp8 matrix lie: one float for each block, row by row of blocks.
struct StoredScales {
  const InputFile* file = nullptr;
  uint64_t offset_bytes = 0;  ///< Of the matrix's first scale in the file.
  DType dtype = DType::kF32;
  uint64_t block_rows = 0;
  uint64_t block_cols = 0;
  uint64_t cols = 0;       ///< Blocks side by side.
  uint64_t first_row = 0;  ///< Row of the scaled matrix at which the tensor begins.
};

/// Where a file holds a canonical tensor, row-major and without gaps, and in which dtype.
struct StoredTensor {
  const InputFile* file = nullptr;
  uint64_t offset_bytes = 0;
  DType dtype = DType::kBf16;
  std::optional<StoredScales> scales{};  ///< Of fp8.
};

/// Reads elements [first, first + out.size() / element size) of `info` in its own dtype. Elements
/// stored in another one are converted through fp32 with rounding to nearest, ties to even; fp8 is
/// multiplied by its scale in fp32 first, as DeepSeek-V3's inference/kernel.py (weight_dequant)
/// does. Throws a request error that names the tensor for a number that is too large for its dtype,
/// and a run-time error when the disk fails.
void read_stored(const StoredTensor& stored, const TensorInfo& info, uint64_t first,
                 std::span<std::byte> out);

/// The bytes that read_stored reads from files for `count` elements from `first` on.
[[nodiscard]] uint64_t stored_bytes(const StoredTensor& stored, const TensorInfo& info,
                                    uint64_t first, uint64_t count);

}  // namespace awex
