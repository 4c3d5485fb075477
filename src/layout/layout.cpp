#include "layout/layout.hpp"

#include <algorithm>

namespace awex {

std::vector<Gap> RankLayout::gaps(const Catalogue& catalogue) const {
  // Shards of a parameter are whole rows of it, in ascending order of offset.
  std::vector<Gap> gaps;
  uint64_t covered = 0;
  for (const auto& shard : shards) {
    if (shard.offset_bytes > covered) gaps.push_back({covered, shard.offset_bytes - covered});
    const uint64_t size = element_bytes(catalogue.tensors()[shard.tensor].dtype);
    covered = shard.offset_bytes + shard.box.elements() * size;
  }
  if (bytes > covered) gaps.push_back({covered, bytes - covered});
  return gaps;
}

}  // namespace awex
