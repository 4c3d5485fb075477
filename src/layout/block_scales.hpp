#pragma once

#include <cstdint>

#include "base/checked.hpp"
#include "layout/box.hpp"
#include "layout/layout.hpp"

namespace awex {

/// The blocks that share at least one element with a range of rows or columns.
[[nodiscard]] constexpr Range touched_blocks(Range range, uint32_t block) {
  return {range.begin / block, ceil_div(range.end, block)};
}

/// The same of a box, as a box of the tensor of scales.
[[nodiscard]] constexpr Box touched_blocks(const Box& box, uint32_t block) {
  return {touched_blocks(box.rows, block), touched_blocks(box.cols, block)};
}

/// The blocks whose first element lies in the box: boxes that partition a tensor own boxes that
/// partition its scales. May be empty.
[[nodiscard]] constexpr Box owned_blocks(const Box& box, uint32_t block) {
  return {{ceil_div(box.rows.begin, block), ceil_div(box.rows.end, block)},
          {ceil_div(box.cols.begin, block), ceil_div(box.cols.end, block)}};
}

/// Where a box's scales lie in a trainer's weights region, seen from the box's first element.
struct ScalePlace {
  uint64_t offset_bytes = 0;  ///< Of the scale of the block that holds the first element.
  uint64_t row_stride = 0;    ///< Scales from one row of blocks to the next.
  uint32_t block = 0;         ///< Rows and columns of a block.
  uint32_t row_in_block = 0;  ///< Of the first element.
  uint32_t col_in_block = 0;

  /// Seen from the element that lies so many rows and columns behind the first.
  [[nodiscard]] constexpr ScalePlace moved(uint64_t rows, uint64_t cols) const {
    const uint64_t row = row_in_block + rows;
    const uint64_t col = col_in_block + cols;
    return {offset_bytes + (row / block * row_stride + col / block) * sizeof(float), row_stride,
            block, static_cast<uint32_t>(row % block), static_cast<uint32_t>(col % block)};
  }

  constexpr bool operator==(const ScalePlace&) const = default;
};

/// The scales of `part`, a box inside a shard's `whole` box, whose touched scales lie at `scales`.
[[nodiscard]] constexpr ScalePlace scale_place(const TouchedScales& scales, const Box& whole,
                                               const Box& part, uint32_t block) {
  const ScalePlace first{scales.offset_bytes, scales.row_stride, block,
                         static_cast<uint32_t>(whole.rows.begin % block),
                         static_cast<uint32_t>(whole.cols.begin % block)};
  return first.moved(part.rows.begin - whole.rows.begin, part.cols.begin - whole.cols.begin);
}

}  // namespace awex
