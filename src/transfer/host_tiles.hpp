#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/checked.hpp"

namespace awex {

/// A part of one item of a batch, small enough that threads share a batch evenly: some whole rows,
/// or a part of one row.
struct HostTile {
  uint64_t item = 0;
  uint64_t first_row = 0;
  uint64_t rows = 0;
  uint64_t first_col = 0;
  uint64_t cols = 0;
};

/// Appends tiles of about `tile_cells` cells that cover `rows` x `cols` cells of item `item`
/// exactly once, in row-major order. A cell is whatever the caller counts: a byte or an element.
inline void append_tiles(std::vector<HostTile>& tiles, uint64_t item, uint64_t rows, uint64_t cols,
                         uint64_t tile_cells) {
  if (rows == 0 || cols == 0) return;
  const uint64_t rows_per_tile = std::max<uint64_t>(1, tile_cells / cols);
  const uint64_t cols_per_tile = rows_per_tile > 1 ? cols : std::min(cols, tile_cells);
  for (uint64_t row = 0; row < rows; row += rows_per_tile) {
    for (uint64_t col = 0; col < cols; col += cols_per_tile) {
      tiles.push_back({item, row, std::min(rows_per_tile, rows - row), col,
                       std::min(cols_per_tile, cols - col)});
    }
  }
}

}  // namespace awex
