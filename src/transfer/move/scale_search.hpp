#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/job.hpp"
#include "layout/trainer_scales.hpp"
#include "memory/device.hpp"
#include "memory/placed_memory.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// Finds the scales of the blocks that one trainer rank holds, before its weights are quantised on
/// their way to inference. Blocks that several shards hold parts of get their scale from the
/// largest value of all.
class ScaleSearch {
 public:
  /// `weights` is the rank's weights memory, laid out as `rank` says, each shard in one segment and
  /// all scales of shared blocks in one; empty on an inference rank, which holds none. `shared` is
  /// shared_blocks of the trainers. All referred objects must outlive this one.
  ScaleSearch(Job& job, const Catalogue& held, const RankLayout& rank, const PlacedMemory& weights,
              std::vector<BlockId> shared, Device& device, Kernels& kernels, CopyQueue& queue);

  /// Writes all scales into the region, whose weights must be resident and not change meanwhile.
  /// Returns the bytes read. Collective over all ranks of the job, trainers or not.
  uint64_t run();

 private:
  /// Brings this rank's scales to host memory, gives shared blocks their common value, and takes
  /// them back.
  void settle_shared();
  [[nodiscard]] std::vector<uint64_t> common_values();

  Job& job_;
  std::vector<BlockId> shared_;
  Kernels& kernels_;
  CopyQueue& queue_;
  uint64_t bytes_ = 0;
  std::unique_ptr<ScaleBatch> batch_;
  std::vector<SharedScale> places_;     ///< Of shared blocks, in this rank's region.
  uint64_t first_byte_ = 0;             ///< Of the part of the region that holds them.
  std::unique_ptr<HostBlock> window_;   ///< As large as this part.
  std::byte* device_window_ = nullptr;  ///< Where this part lies.
};

}  // namespace awex
