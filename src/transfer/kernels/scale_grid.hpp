#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/block_scales.hpp"
#include "memory/placed_memory.hpp"
#include "transfer/kernels/conversion.hpp"

namespace awex {

/// The scales at a place in a memory, for a box of so many rows and columns of elements, as the
/// kernels see them. Conversions only read them. Throws what PlacedMemory::at does where they do
/// not lie in one segment.
[[nodiscard]] inline ScaleGrid scale_grid(const ScalePlace& place, uint64_t rows, uint64_t cols,
                                          const PlacedMemory& memory) {
  const uint64_t last_row = (place.row_in_block + rows - 1) / place.block;
  const uint64_t last_col = (place.col_in_block + cols - 1) / place.block;
  const uint64_t scales = last_row * place.row_stride + last_col + 1;
  return {reinterpret_cast<float*>(memory.at(place.offset_bytes, scales * sizeof(float))),
          place.row_stride, place.block, place.row_in_block, place.col_in_block};
}

}  // namespace awex
