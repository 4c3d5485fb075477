#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.hpp"

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

/// A batch's tiles, joined to loads of about equal bytes that threads take one at a time: a large
/// item keeps all threads busy, and of small ones a thread takes many at once.
class HostTiles {
 public:
  /// Large enough that taking a load costs nothing beside it, small enough that it stays in a
  /// core's second-level cache and that the last ones end together.
  static constexpr uint64_t kLoadBytes = 256ULL << 10;

  /// Adds `rows` x `cols` cells of item `item`. `cell_bytes` is what work on a cell touches on its
  /// larger side.
  void add(uint64_t item, uint64_t rows, uint64_t cols, uint64_t cell_bytes) {
    size_t next = tiles_.size();
    append_tiles(tiles_, item, rows, cols, std::max<uint64_t>(1, kLoadBytes / cell_bytes));
    for (; next < tiles_.size(); ++next) {
      const uint64_t bytes = tiles_[next].rows * tiles_[next].cols * cell_bytes;
      if (loads_.empty() || last_load_bytes_ + bytes > kLoadBytes) {
        loads_.push_back(next);
        last_load_bytes_ = 0;
      }
      last_load_bytes_ += bytes;
    }
  }

  [[nodiscard]] size_t loads() const { return loads_.size(); }
  /// In the order in which a load's thread works on them.
  [[nodiscard]] std::span<const HostTile> load(size_t index) const {
    const size_t end = index + 1 < loads_.size() ? loads_[index + 1] : tiles_.size();
    return std::span(tiles_).subspan(loads_[index], end - loads_[index]);
  }

  /// Calls work(tile) for every tile, spread over the pool's threads.
  template <class Work>
  void for_each(ThreadPool& pool, const Work& work) const {
    pool.for_each(loads_.size(), [&](size_t index) {
      for (const auto& tile : load(index)) work(tile);
    });
  }

 private:
  std::vector<HostTile> tiles_;
  std::vector<size_t> loads_;  ///< The first tile of each.
  uint64_t last_load_bytes_ = 0;
};

}  // namespace awex
