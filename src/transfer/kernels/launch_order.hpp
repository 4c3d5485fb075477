#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/kernels/cuda_tiles.hpp"

/// The order of a launch whose blocks copy and, behind the copies, digest what they wrote while it
/// is still in the cache. Addresses and numbers alone: no CUDA.

namespace awex::cuda {

/// What is put in order: up to so many neighbouring tiles of one item, one block each.
inline constexpr uint32_t kStepTiles = 4;

/// Memory that the tiles of an item touch.
struct TouchedRows {
  uint64_t begin = 0;      ///< Address of the first row.
  uint64_t row_bytes = 0;  ///< Without the gap to the next row.
  uint64_t stride = 0;     ///< Bytes from row to row; no less than row_bytes if there are several.
  UnitGrid grid;
  uint32_t unit_bytes = 0;
  uint32_t early_bytes = 0;  ///< Units may begin up to so many bytes earlier in their row.
};

/// A item that copies.
struct TouchedByCopy {
  TouchedRows from;
  TouchedRows to;
};

/// One step of a launch. The copies' steps, in their order, are cut into *stretches*, each of which
/// counts the tiles that are not done; what reads the copies' targets waits until some are at zero.
struct LaunchStep {
  uint32_t item = 0;  ///< Index of a copy, or number of copies + index of a view.
  uint32_t first_tile = 0;
  /// Of a copy: its own stretch, twice. Of a view: those it waits for, half-open, maybe none.
  uint32_t first_stretch = 0;
  uint32_t end_stretch = 0;
};

struct LaunchOrder {
  std::vector<LaunchStep> steps;
  std::vector<uint32_t> stretch_tiles;  ///< Tiles that copy, by stretch.
};

/// How coarsely copies are counted, and how far behind them they are read.
struct LaunchShape {
  uint32_t stretch_steps = 0;
  /// Steps of copies between a view's step and the last copy that it waits for: more than run at
  /// once, so that it seldom waits, and few enough that their bytes stay in the cache.
  uint32_t lag_steps = 0;
};

/// Orders all tiles of copies and views. Copies go by target address. A view's step stands behind
/// all copies into the range of addresses that it reads, by the lag while copies are left; a step
/// that reads what no copy writes stands behind the copy that reads next to it, so that both read
/// memory once. What a step waits for stands before it and copies wait for nothing: where steps
/// begin in this order, nobody waits for ever. O(n log n) in the steps. Throws a run-time error for
/// more tiles than one launch can have.
[[nodiscard]] LaunchOrder order_launch(std::span<const TouchedByCopy> copies,
                                       std::span<const TouchedRows> views,
                                       const LaunchShape& shape);

}  // namespace awex::cuda
