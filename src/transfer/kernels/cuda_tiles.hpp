#pragma once

#include <cstdint>

namespace awex::cuda {

/// How batches of many pieces are spread over a GPU: every piece is cut into tiles of the same
/// number of units (a unit is what one thread loads at once), and every tile is one block's work. A
/// block finds its piece by its number in a table of owners, and its place by the piece's first
/// tile.
inline constexpr uint32_t kTileThreads = 256;
inline constexpr uint32_t kUnitsPerThread = 8;
inline constexpr uint32_t kTileUnits = kTileThreads * kUnitsPerThread;

/// Rows of units, which a piece is made of. Pieces without gaps between rows are one row.
struct UnitGrid {
  uint64_t units = 0;      ///< In all rows.
  uint64_t row_units = 0;  ///< In one row.
  uint64_t first_tile = 0;
};

}  // namespace awex::cuda
