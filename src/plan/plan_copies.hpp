#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "plan/plan.hpp"

namespace awex {

/// Rows of equal length at regular distances from one rank's memory to another's: one or more
/// pieces, also of different tensors. Offsets and strides are bytes, on each side as it holds the
/// elements; strides do not matter to a single row.
struct MergedCopy {
  uint32_t source = 0;  ///< Trainer role rank.
  uint32_t target = 0;  ///< Inference role rank.
  uint64_t rows = 0;
  uint64_t row_bytes = 0;  ///< At the target.
  uint64_t source_offset = 0;
  uint64_t source_stride = 0;
  uint64_t target_offset = 0;
  uint64_t target_stride = 0;
  DType from = DType::kBf16;
  DType to = DType::kBf16;
  std::optional<ScalePlace> scales{};  ///< As in Piece.

  [[nodiscard]] uint64_t source_row_bytes() const {
    return row_bytes / element_bytes(to) * element_bytes(from);
  }

  [[nodiscard]] uint64_t bytes() const { return rows * row_bytes; }
  /// Where a byte of a row lies in the target's region.
  [[nodiscard]] uint64_t target_byte(uint64_t row, uint64_t byte) const {
    return target_offset + row * target_stride + byte;
  }
};

/// The rows [row, row + rows) of a copy, and of each row the bytes [byte, byte + row_bytes) as its
/// target holds them: whole elements.
[[nodiscard]] MergedCopy part_of(const MergedCopy& copy, uint64_t row, uint64_t rows, uint64_t byte,
                                 uint64_t row_bytes);

/// The copy in parts of at most `most` bytes each: whole rows, or parts of rows that are longer
/// than that.
[[nodiscard]] std::vector<MergedCopy> split(const MergedCopy& copy, uint64_t most);

/// Merges pieces that follow each other (as a Plan orders them) and have the same two ends into
/// strided copies: what is contiguous on both sides becomes one row, rows at regular distances
/// become one copy. So Megatron's interleaved query groups need one copy into SGLang's qkv_proj for
/// each of q, k and v; gate and up of an expert one; and experts that both engines stack, one in
/// all. Quantised pieces stay as they are: what touches in memory has other scales.
[[nodiscard]] std::vector<MergedCopy> merge_pieces(std::span<const Piece> pieces);

}  // namespace awex
