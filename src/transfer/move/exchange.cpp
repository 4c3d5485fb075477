#include "transfer/move/exchange.hpp"

#include <set>

namespace awex {

std::vector<int> Exchange::ranks_met(size_t first, size_t end) const {
  std::set<int> ranks;
  for (size_t round = first; round < end; ++round) {
    for (const auto* messages : {&rounds_.at(round).sends, &rounds_.at(round).receives}) {
      for (const auto& message : *messages) ranks.insert(world_rank(message.peer));
    }
  }
  return {ranks.begin(), ranks.end()};
}

}  // namespace awex
