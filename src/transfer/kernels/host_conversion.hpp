#pragma once

#include <cstddef>
#include <cstdint>

#include "transfer/kernels/kernels.hpp"

/// What the host kernels do to elements besides copying them. Memory is read and written at any
/// alignment.

namespace awex {

/// Writes `count` neighbouring elements of a row to `to`, converted. (row, col) is the place of the
/// first one in the conversion's box, `from` where it lies.
void convert_elements(const Conversion& conversion, uint64_t row, uint64_t col, uint64_t count,
                      const std::byte* from, std::byte* to);

/// The largest absolute value in a box that lies at `data`, as fp32; NaN if there is one. Rows are
/// `row_stride` elements apart.
[[nodiscard]] float largest_magnitude(DType dtype, const std::byte* data, uint64_t rows,
                                      uint64_t cols, uint64_t row_stride);

}  // namespace awex
