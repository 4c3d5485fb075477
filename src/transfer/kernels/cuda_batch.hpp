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

/// Numbers the tiles, of `tile_units` units, of all items, whose descriptors have a UnitGrid
/// `grid`, and tells each tile's item.
template <class Descriptor>
[[nodiscard]] std::vector<uint32_t> lay_tiles(std::span<Descriptor> descriptors,
                                              uint32_t tile_units) {
  std::vector<uint32_t> owners;
  for (uint64_t i = 0; i < descriptors.size(); ++i) {
    auto& grid = descriptors[i].grid;
    grid.first_tile = owners.size();
    const uint64_t tiles = grid.units / tile_units + (grid.units % tile_units != 0);
    owners.resize(owners.size() + tiles, static_cast<uint32_t>(i));
  }
  // The limit of a launch's first dimension; items are fewer than tiles or empty.
  constexpr uint64_t kMostTiles = std::numeric_limits<int32_t>::max();
  if (owners.size() > kMostTiles || descriptors.size() > kMostTiles) {
    throw runtime_error(fmt::format("a batch of {} items in {} tiles is too large for one launch",
                                    descriptors.size(), owners.size()));
  }
  return owners;
}

/// Descriptors of a batch's items and their tiles' owners, ready on the device for launches on
/// `stream`.
template <class Descriptor>
class TiledBatch {
 public:
  TiledBatch(std::vector<Descriptor> descriptors, cudaStream_t stream,
             uint32_t tile_units = kTileUnits)
      : TiledBatch(lay_tiles(std::span<Descriptor>(descriptors), tile_units), descriptors, stream) {
  }

  [[nodiscard]] const Descriptor* descriptors() const { return descriptors_.data(); }
  [[nodiscard]] const uint32_t* owners() const { return owners_.data(); }
  [[nodiscard]] uint32_t tiles() const { return static_cast<uint32_t>(owners_.size()); }

 private:
  TiledBatch(const std::vector<uint32_t>& owners, const std::vector<Descriptor>& descriptors,
             cudaStream_t stream)
      : descriptors_(std::span<const Descriptor>(descriptors), stream),
        owners_(std::span<const uint32_t>(owners), stream) {}

  DeviceArray<Descriptor> descriptors_;
  DeviceArray<uint32_t> owners_;
};

}  // namespace awex::cuda
