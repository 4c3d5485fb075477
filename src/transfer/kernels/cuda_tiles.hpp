#pragma once

#include <cstdint>

namespace awex::cuda {

/// How batches of many items (copies, views) are spread over a GPU: every item is cut into tiles of
/// the same number of units (a unit is what one thread loads at once), and every tile is one
/// block's work. A block finds its item's descriptor by its number in a table of owners, and its
/// place by the item's first tile.
inline constexpr uint32_t kTileThreads = 256;
inline constexpr uint32_t kUnitsPerThread = 8;
inline constexpr uint32_t kTileUnits = kTileThreads * kUnitsPerThread;

/// Rows of units, which an item is made of. Items without gaps between rows are one row.
struct UnitGrid {
  uint64_t units = 0;      ///< In all rows.
  uint64_t row_units = 0;  ///< In one row.
  uint64_t first_tile = 0;
};

}  // namespace awex::cuda
