#include "transfer/plan_shards.hpp"

#include "base/checked.hpp"

namespace awex {

RoleShards::RoleShards(const Catalogue& catalogue, const Layout& layout) {
  std::vector<Entry> entries;
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
      add_content(layout.rank_layout(rank), entries);
      content_.push_back(narrow<uint32_t>(members_.size() - 1));
    } else {
      content_.push_back(content_[like]);
    }
    members_[content_.back()].push_back(rank);
  }
  sort_by_tensor(catalogue.tensors().size(), entries);
}

RoleShards::RoleShards(const Catalogue& catalogue, const std::vector<RankLayout>& ranks) {
  std::vector<Entry> entries;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) {
    add_content(ranks[rank], entries);
    content_.push_back(rank);
    members_.back().push_back(rank);
  }
  sort_by_tensor(catalogue.tensors().size(), entries);
}

void RoleShards::add_content(const RankLayout& layout, std::vector<Entry>& entries) {
  const auto content = narrow<uint32_t>(members_.size());
  members_.emplace_back();
  for (const auto& shard : layout.shards) {
    entries.push_back(
        {shard.tensor, {content, shard.box, shard.offset_bytes, shard.row_stride, shard.scales}});
  }
}

void RoleShards::sort_by_tensor(size_t tensors, const std::vector<Entry>& entries) {
  first_.assign(tensors + 1, 0);
  for (const auto& entry : entries) ++first_[entry.tensor + 1];
  for (size_t tensor = 0; tensor < tensors; ++tensor) first_[tensor + 1] += first_[tensor];
  shards_.resize(entries.size());
  auto next = first_;
  for (const auto& entry : entries) shards_[next[entry.tensor]++] = entry.shard;
}

}  // namespace awex
