#include "transfer/kernels/conversion.hpp"

#include <limits>

#include "base/error.hpp"

namespace awex {
namespace {

constexpr const char* kOurFault = "this is a fault of awex-colocate: please report it";

bool is_source(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

void check_grid(const ScaleGrid& grid, uint64_t rows, uint64_t cols) {
  constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
  const bool has_blocks = grid.scales != nullptr && grid.block > 0 &&
                          grid.row_in_block < grid.block && grid.col_in_block < grid.block;
  const bool fits = rows <= kMost && cols <= kMost && rows + 2ULL * grid.block <= kMost &&
                    cols + 2ULL * grid.block <= kMost;
  if (has_blocks && fits) return;
  throw runtime_error(
      fmt::format("cannot scale a box of {} x {} elements that begins at ({}, {}) of a block of "
                  "{} x {}, with {} scales",
                  rows, cols, grid.row_in_block, grid.col_in_block, grid.block, grid.block,
                  grid.scales == nullptr ? "no" : "its"),
      kOurFault);
}

}  // namespace

void check_conversion(const Conversion& conversion, uint64_t rows, uint64_t cols) {
  const bool quantises = conversion.to == DType::kF8E4M3;
  if (!is_source(conversion.from) || conversion.from == conversion.to ||
      (!is_source(conversion.to) && !quantises)) {
    throw runtime_error(fmt::format("no kernel converts {} to {}", dtype_name(conversion.from),
                                    dtype_name(conversion.to)),
                        kOurFault);
  }
  if (quantises) check_grid(conversion.grid, rows, cols);
}

void check_scales_source(DType dtype, const ScaleGrid& grid, uint64_t rows, uint64_t cols) {
  if (!is_source(dtype)) {
    throw runtime_error(fmt::format("no kernel finds the scales of {}", dtype_name(dtype)),
                        kOurFault);
  }
  check_grid(grid, rows, cols);
}

}  // namespace awex
