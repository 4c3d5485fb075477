#include "doctor/host_memory_check.hpp"

#include <algorithm>

#include "base/units.hpp"
#include "memory/host_memory.hpp"

namespace awex {

HostClaim claim_least(const NodeIdentity& node) {
  HostClaim claim{node, kLeastHostBytes, {}};
  const auto bounds = host_memory_bounds();
  const size_t count = std::min(bounds.size(), claim.bounds.size());
  for (size_t i = 0; i < count; ++i) claim.bounds.at(i) = bounds[i];
  return claim;
}

Finding judge_host_memory(std::span<const HostClaim> claims, const NodeIdentity& here) {
  const HostBound* tightest = nullptr;
  for (const auto& claim : claims) {
    if (claim.node != here) continue;
    for (const auto& bound : claim.bounds) {
      if (bound && (tightest == nullptr || bound->left_bytes < tightest->left_bytes)) {
        tightest = &*bound;
      }
    }
  }
  if (tightest == nullptr) return waived("neither the kernel nor a cgroup tells what is free");
  const auto left = static_cast<double>(tightest->left_bytes);
  for (const auto& shortage : host_shortages(claims)) {
    if (shortage.host != here.name()) continue;
    return with_value(
        failed(fmt::format("{} left by {}; {} rank{} need at least {}",
                           format_bytes(shortage.bound.left_bytes), text_of(shortage.bound.name),
                           shortage.ranks, shortage.ranks == 1 ? "" : "s",
                           format_bytes(shortage.wanted_bytes)),
               "give the ranks more memory: memory.max of the cgroup, --mem of Slurm, --memory of "
               "a container; awex-colocate plan tells what a model needs"),
        "left_bytes", left);
  }
  return with_value(passed(fmt::format("{} left by {}", format_bytes(tightest->left_bytes),
                                       text_of(tightest->name))),
                    "left_bytes", left);
}

}  // namespace awex
