#pragma once

#include <cstdint>
#include <span>

#include "cycle/host_room.hpp"
#include "doctor/finding.hpp"

namespace awex {

/// The least that a rank has of host memory in an update of a small model.
inline constexpr uint64_t kLeastHostBytes = 256ULL << 20;

/// That much, with what bounds host memory here.
[[nodiscard]] HostClaim claim_least(const NodeIdentity& node);

/// Whether the host `here` has room for all of its ranks' claims: what the kernel and cgroups
/// leave. The same for all ranks of the host. `claims` are by rank. Pure.
[[nodiscard]] Finding judge_host_memory(std::span<const HostClaim> claims,
                                        const NodeIdentity& here);

}  // namespace awex
