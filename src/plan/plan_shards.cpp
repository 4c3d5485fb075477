#include "plan/plan_shards.hpp"

#include <numeric>

#include "base/checked.hpp"

namespace awex {

RoleShards::RoleShards(const Catalogue& catalogue, const Layout& layout) {
  std::vector<std::vector<Shard>> groups;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    const uint32_t like = layout.first_like(rank);
    if (like > rank || (like < rank && layout.first_like(like) != like)) {
      throw runtime_error(
          fmt::format("the layout {} is wrong: rank {} is said to be like rank {}, which is not "
                      "the first of its kind",
                      layout.describe(), rank, like),
          "this is a bug in the layout: please report it with the command line");
    }
    if (like == rank) {
      groups.push_back(layout.rank_layout(rank).shards);
      members_.emplace_back();
      group_.push_back(narrow<uint32_t>(members_.size() - 1));
    } else {
      group_.push_back(group_[like]);
    }
    members_[group_.back()].push_back(rank);
  }
  sort_by_tensor(catalogue.tensors().size(), {groups.begin(), groups.end()});
}

std::vector<uint64_t> RoleShards::replicas_of_tensors(const Catalogue& catalogue) const {
  std::vector<uint64_t> replicas;
  for (uint32_t tensor = 0; tensor < catalogue.tensors().size(); ++tensor) {
    uint64_t held = 0;
    for (const auto& shard : of(tensor)) {
      held += shard.box.elements() * ranks_of(shard.group).size();
    }
    replicas.push_back(held / catalogue.tensors()[tensor].elements());
  }
  return replicas;
}

void RoleShards::sort_by_tensor(size_t tensors, const std::vector<std::span<const Shard>>& groups) {
  first_.assign(tensors + 1, 0);
  for (const auto& shards : groups) {
    for (const auto& shard : shards) ++first_[shard.tensor + 1];
  }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  shards_.resize(first_.back());
  auto next = first_;
  for (uint32_t group = 0; group < groups.size(); ++group) {
    for (const auto& shard : groups[group]) {
      shards_[next[shard.tensor]++] = {group, shard.box, shard.offset_bytes, shard.row_stride,
                                       shard.scales};
    }
  }
}

}  // namespace awex
