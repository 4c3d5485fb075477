#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fixed_text.hpp"
#include "comm/job.hpp"
#include "memory/host_memory.hpp"

namespace awex {

/// The host memory that one rank will hold, and what bounds it. Plain data.
struct HostClaim {
  NodeIdentity node;
  uint64_t wanted_bytes = 0;
  std::array<std::optional<HostBound>, 8> bounds{};
};

/// A host where the ranks that a bound counts together will hold more than it has left, or more
/// than it ever allows.
struct HostShortage {
  std::string host;
  HostBound bound;
  uint64_t wanted_bytes = 0;  ///< By all of these ranks.
  size_t ranks = 0;           ///< That want any.

  /// Whether the job cannot succeed; otherwise others may free memory in time.
  [[nodiscard]] bool is_certain() const { return wanted_bytes > bound.most_bytes; }
  /// "2 ranks on host a will hold 61 GB of host memory, and memory.max of cgroup /job (32 GB) …"
  [[nodiscard]] std::string describe() const;
};

/// The worst shortage of each host that has one. Claims are in the order of ranks.
[[nodiscard]] std::vector<HostShortage> host_shortages(std::span<const HostClaim> claims);

/// Compares what all ranks will hold with what bounds it. Throws an agreed request error for what
/// cannot succeed; rank 0 warns of what may not. Collective.
void check_host_room(Job& job, uint64_t wanted_bytes);

}  // namespace awex
