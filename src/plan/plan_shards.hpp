#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "layout/layout.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// A shard that every rank of a group holds.
struct HeldShard {
  uint32_t group = 0;  ///< Of ranks, in RoleShards.
  Box box;
  uint64_t offset_bytes = 0;  ///< From the start of the weights region.
  uint64_t row_stride = 0;    ///< Elements.
  std::optional<TouchedScales> scales{};
};

/// What the ranks of one role hold, found by tensor. Ranks that hold the same are one *group*,
/// whose shards are kept once: memory grows with the groups, not with the cluster.
class RoleShards {
 public:
  /// A role without ranks.
  RoleShards() = default;
  /// Evaluates the layout of the first rank of each group (Layout::first_like).
  RoleShards(const Catalogue& catalogue, const Layout& layout);

  [[nodiscard]] uint32_t ranks() const { return static_cast<uint32_t>(group_.size()); }
  [[nodiscard]] uint32_t group_of(uint32_t rank) const { return group_[rank]; }
  /// In ascending order.
  [[nodiscard]] std::span<const uint32_t> ranks_of(uint32_t group) const { return members_[group]; }
  /// All shards of a tensor, by group in ascending order, then as the layout lists them.
  [[nodiscard]] std::span<const HeldShard> of(uint32_t tensor) const {
    return std::span(shards_).subspan(first_[tensor], first_[tensor + 1] - first_[tensor]);
  }
  /// For each tensor the number of replicas that the ranks hold together.
  [[nodiscard]] std::vector<uint64_t> replicas_of_tensors(const Catalogue& catalogue) const;

 private:
  void sort_by_tensor(size_t tensors, const std::vector<std::span<const Shard>>& groups);

  std::vector<uint32_t> group_;                 ///< By rank.
  std::vector<std::vector<uint32_t>> members_;  ///< By group.
  std::vector<HeldShard> shards_;               ///< By tensor.
  std::vector<size_t> first_;                   ///< By tensor: where its shards begin; and the end.
};

}  // namespace awex
