#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/node_identity.hpp"
#include "base/role.hpp"
#include "memory/device.hpp"

namespace awex {

/// A rank as all others know it.
struct Peer {
  int rank = 0;
  Role role = Role::kTrainer;
  uint32_t role_rank = 0;  ///< Position among the ranks of its role, by rank.
  int pid = 0;
  NodeIdentity node;
  DeviceIdentity device;

  /// "rank 3 (inference, host a, gpu 1)".
  [[nodiscard]] std::string describe() const;
};

/// World ranks of a role's ranks, by role rank.
[[nodiscard]] std::vector<int> ranks_of(const std::vector<Peer>& peers, Role role);

}  // namespace awex
