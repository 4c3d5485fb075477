#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout/block_scales.hpp"
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

/// No rank.
inline constexpr uint32_t kNobody = ~uint32_t{0};

/// The rank of a role on each of `devices` devices; kNobody where there is none. `device_of` is
/// Placement's of that role.
[[nodiscard]] std::vector<uint32_t> rank_on_devices(const std::vector<uint32_t>& device_of,
                                                    size_t devices);

/// How far a piece's source is from its target.
enum class Near : uint8_t { kDevice, kNode, kCluster };

/// A box that goes from a trainer's weights to an inference rank's. Offsets are bytes from the
/// start of the two weights regions; strides are bytes from one row of the box to the next, in the
/// region of that end. Where the ends have different dtypes, elements are converted as
/// they leave the source.
struct Piece {
  uint32_t source = 0;  ///< Trainer role rank.
  uint32_t target = 0;  ///< Inference role rank.
  uint32_t tensor = 0;
  Box box;
  DType from = DType::kBf16;  ///< At the source.
  DType to = DType::kBf16;    ///< On the way, and at the target.
  uint64_t row_bytes = 0;     ///< At the target.
  uint64_t source_offset = 0;
  uint64_t source_stride = 0;
  uint64_t target_offset = 0;
  uint64_t target_stride = 0;
  std::optional<ScalePlace> scales{};  ///< In the source's region, where `to` is kF8E4M3.
  Near near = Near::kDevice;
  uint32_t choices = 1;  ///< Equally near trainers that hold the box, among which load is spread.

  [[nodiscard]] bool converts() const { return from != to; }
  /// What moves.
  [[nodiscard]] uint64_t bytes() const { return box.rows.size() * row_bytes; }
};

/// What moves in an update, or one device's part of it; the totals are always those of the whole.
struct Plan {
  std::vector<Piece> pieces;  ///< By target, then by offset in the target's memory.
  uint64_t total_pieces = 0;
  uint64_t local_bytes = 0;  ///< Source and target on one device.
  uint64_t remote_bytes = 0;
  /// Bytes of inference shards that no trainer shard on the same device holds: no plan can move
  /// fewer between devices.
  uint64_t remote_bytes_lower_bound = 0;
};

/// "on the same GPU", "the only source on the node", "one of 8 sources in the cluster": why a piece
/// comes from where it does.
[[nodiscard]] std::string describe_choice(const Piece& piece);

/// Proves what one inference rank receives from the layouts alone, its own and its sources': the
/// pieces of each of its shards lie in it, are disjoint, and add up to it; every piece's source
/// holds its box, in the dtype that the piece converts from, and the scale of every one of its
/// blocks where the piece reads it. `plan` may hold other ranks' pieces. `catalogue` is what
/// inference holds (layout/held_catalogue.hpp), and the trainer's layout has its scales
/// (layout/trainer_scales.hpp). Throws a run-time error.
void prove_received(const Plan& plan, const Catalogue& catalogue, const Layout& trainer,
                    const Layout& inference, uint32_t target);

}  // namespace awex
