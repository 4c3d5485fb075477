#pragma once

#include "transfer/kernels/cuda_tiles.hpp"

namespace awex::cuda {

/// One thread's walk over its units of a tile: kTileThreads apart, so that the threads of a warp
/// touch neighbours. Divides once; further steps add and carry.
class UnitWalk {
 public:
  __device__ explicit UnitWalk(const UnitGrid& grid)
      : UnitWalk(grid, blockIdx.x - grid.first_tile) {}
  /// In the item's tile `tile`.
  __device__ UnitWalk(const UnitGrid& grid, uint64_t tile)
      : UnitWalk(grid.units, grid.row_units, tile * kTileUnits + threadIdx.x) {}
  /// From unit `first` on.
  __device__ UnitWalk(uint64_t units, uint64_t row_units, uint64_t first)
      : units_(units), row_units_(row_units), unit_(first) {
    row_ = unit_ / row_units_;
    col_ = unit_ - row_ * row_units_;
    row_step_ = kTileThreads / row_units_;
    col_step_ = kTileThreads - row_step_ * row_units_;
  }

  /// Whether the walk is still inside the item.
  __device__ bool inside() const { return unit_ < units_; }
  __device__ uint64_t unit() const { return unit_; }
  __device__ uint64_t row() const { return row_; }
  __device__ uint64_t col() const { return col_; }

  __device__ void next() {
    unit_ += kTileThreads;
    row_ += row_step_;
    col_ += col_step_;
    if (col_ >= row_units_) {
      col_ -= row_units_;
      ++row_;
    }
  }

 private:
  uint64_t units_;
  uint64_t row_units_;
  uint64_t unit_;
  uint64_t row_;
  uint64_t col_;
  uint64_t row_step_;
  uint64_t col_step_;
};

/// Launches one block a tile.
template <class... Parameters, class... Arguments>
cudaError_t launch_tiles(void (*kernel)(Parameters...), uint32_t tiles, cudaStream_t stream,
                         Arguments... arguments) {
  if (tiles == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(tiles);
  config.blockDim = dim3(kTileThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace awex::cuda
