#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/cuda_owners.hpp"
#include "transfer/kernels/cuda_tiles.hpp"

namespace awex::cuda {

/// The elements of a DigestView or AdamWView as one row, if neither memory nor canonical indices
/// have gaps between its rows.
template <class View>
[[nodiscard]] View collapse(View view) {
  if (view.rows > 1 && (view.row_stride != view.cols || view.canonical_cols != view.cols)) {
    return view;
  }
  view.cols *= view.rows;
  view.rows = view.cols == 0 ? 0 : 1;
  return view;
}

/// Numbers the tiles, of `tile_units` units, of all pieces (which have a UnitGrid `grid`) and tells
/// each tile's piece.
template <class Piece>
[[nodiscard]] std::vector<uint32_t> lay_tiles(std::span<Piece> pieces, uint32_t tile_units) {
  std::vector<uint32_t> owners;
  for (uint64_t i = 0; i < pieces.size(); ++i) {
    auto& grid = pieces[i].grid;
    grid.first_tile = owners.size();
    const uint64_t tiles = grid.units / tile_units + (grid.units % tile_units != 0);
    owners.resize(owners.size() + tiles, static_cast<uint32_t>(i));
  }
  // The limit of a launch's first dimension; pieces are fewer than tiles or empty.
  constexpr uint64_t kMostTiles = std::numeric_limits<int32_t>::max();
  if (owners.size() > kMostTiles || pieces.size() > kMostTiles) {
    throw runtime_error(fmt::format("a batch of {} pieces in {} tiles is too large for one launch",
                                    pieces.size(), owners.size()));
  }
  return owners;
}

/// Pieces and their tiles' owners, ready on the device for launches on `stream`.
template <class Piece>
class TiledBatch {
 public:
  TiledBatch(std::vector<Piece> pieces, cudaStream_t stream, uint32_t tile_units = kTileUnits)
      : TiledBatch(lay_tiles(std::span<Piece>(pieces), tile_units), pieces, stream) {}

  [[nodiscard]] const Piece* pieces() const { return pieces_.data(); }
  [[nodiscard]] const uint32_t* owners() const { return owners_.data(); }
  [[nodiscard]] uint32_t tiles() const { return static_cast<uint32_t>(owners_.size()); }

 private:
  TiledBatch(const std::vector<uint32_t>& owners, const std::vector<Piece>& pieces,
             cudaStream_t stream)
      : pieces_(std::span<const Piece>(pieces), stream),
        owners_(std::span<const uint32_t>(owners), stream) {}

  DeviceArray<Piece> pieces_;
  DeviceArray<uint32_t> owners_;
};

}  // namespace awex::cuda
