#include "comm/peer.hpp"

#include <fmt/format.h>

namespace awex {

std::string Peer::describe() const {
  return fmt::format("rank {} ({}, host {}, gpu {})", rank, role_name(role), node.name(),
                     device.index);
}

std::vector<int> ranks_of(const std::vector<Peer>& peers, Role role) {
  std::vector<int> ranks;
  for (const auto& peer : peers) {
    if (peer.role != role) continue;
    if (ranks.size() <= peer.role_rank) ranks.resize(peer.role_rank + 1);
    ranks[peer.role_rank] = peer.rank;
  }
  return ranks;
}

}  // namespace awex
