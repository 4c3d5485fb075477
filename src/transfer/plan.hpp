#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/layout.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// Which device, and so which node, each rank of a role sits on. Devices are numbered from 0; a
/// device holds one trainer and one inference rank.
struct Placement {
  std::vector<uint32_t> trainer_device;    ///< By trainer role rank.
  std::vector<uint32_t> inference_device;  ///< By inference role rank.
  std::vector<uint32_t> device_node;       ///< By device.
};

/// A box that goes from a trainer's weights to an inference rank's. Offsets are bytes from the
/// start of the two weights regions; strides are bytes from one row of the box to the next.
struct Piece {
  uint32_t source = 0;  ///< Trainer role rank.
  uint32_t target = 0;  ///< Inference role rank.
  uint32_t tensor = 0;
  Box box;
  uint64_t row_bytes = 0;
  uint64_t source_offset = 0;
  uint64_t source_stride = 0;
  uint64_t target_offset = 0;
  uint64_t target_stride = 0;

  [[nodiscard]] uint64_t bytes() const { return box.rows.size() * row_bytes; }
};

/// Everything that moves in an update, and how much of it has to cross devices.
struct Plan {
  std::vector<Piece> pieces;  ///< By target, then in the order of the target's shards.
  uint64_t local_bytes = 0;   ///< Source and target on one device.
  uint64_t remote_bytes = 0;
  /// Bytes of inference shards that no trainer shard on the same device holds: no plan can move
  /// fewer between devices.
  uint64_t remote_bytes_lower_bound = 0;
};

/// What one role's ranks hold, evaluated once.
[[nodiscard]] std::vector<RankLayout> all_rank_layouts(const Layout& layout);

/// For each tensor the number of copies that the ranks hold together (its replicas).
[[nodiscard]] std::vector<uint64_t> copies_of_tensors(const Catalogue& catalogue,
                                                      const std::vector<RankLayout>& ranks);

/// Plans by intersection: for every inference shard the boxes of trainer shards that fill it, taken
/// from the same device first, then the same node, then spread over replicas. Pure: the same on
/// every rank. Throws a run-time error that names tensor and box if the trainers' shards do not
/// cover an inference shard.
[[nodiscard]] Plan make_plan(const Catalogue& catalogue, const std::vector<RankLayout>& trainers,
                             const std::vector<RankLayout>& inference, const Placement& placement);

/// Proves a finished plan from the layouts alone: the pieces of every inference shard lie in
/// it, are disjoint, and add up to it; every piece's source holds its box. Throws a run-time error.
void prove_plan(const Plan& plan, const Catalogue& catalogue,
                const std::vector<RankLayout>& trainers, const std::vector<RankLayout>& inference);

}  // namespace awex
