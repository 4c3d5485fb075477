#pragma once

#include <cstddef>

#include "layout/block_scales.hpp"
#include "transfer/kernels/conversion.hpp"

namespace awex {

/// The scales at a place in a region that begins at `base`, as the kernels see them.
[[nodiscard]] inline ScaleGrid scale_grid(const ScalePlace& place, std::byte* base) {
  return {reinterpret_cast<float*>(base + place.offset_bytes), place.row_stride, place.block,
          place.row_in_block, place.col_in_block};
}

/// The same in memory that must not be written: for conversions, which only read it.
[[nodiscard]] inline ScaleGrid scale_grid(const ScalePlace& place, const std::byte* base) {
  return scale_grid(place, const_cast<std::byte*>(base));  // NOLINT(*-const-cast)
}

}  // namespace awex
