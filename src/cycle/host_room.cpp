#include "cycle/host_room.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "base/units.hpp"
#include "cycle/world.hpp"

namespace awex {
namespace {

constexpr const char* kRemedies =
    "give the ranks more memory (memory.max of the cgroup, --mem of Slurm, --memory of a "
    "container), or hold less: fewer --layers, --optimizer none, a layout over more nodes";

HostClaim claim_here(const Job& job, uint64_t wanted_bytes) {
  HostClaim claim{job.node(), wanted_bytes, {}};
  const auto bounds = host_memory_bounds();
  // The list begins with the closest ones; more are hardly ever set.
  const size_t count = std::min(bounds.size(), claim.bounds.size());
  for (size_t i = 0; i < count; ++i) claim.bounds.at(i) = bounds[i];
  return claim;
}

/// What is certain is worse than what is not, and then what lacks more is.
bool is_worse(const HostShortage& a, const HostShortage& b) {
  return std::make_tuple(a.is_certain(), b.bound.left_bytes) >
         std::make_tuple(b.is_certain(), a.bound.left_bytes);
}

}  // namespace

std::string HostShortage::describe() const {
  const auto who = ranks == 1 ? std::string("1 rank") : fmt::format("{} ranks", ranks);
  const auto has = is_certain()
                       ? "does not allow as much"
                       : fmt::format("has {} left for them", format_bytes(bound.left_bytes));
  return fmt::format("{} on host {} will hold {} of host memory, and {} {}", who, host,
                     format_bytes(wanted_bytes), text_of(bound.name), has);
}

std::vector<HostShortage> host_shortages(std::span<const HostClaim> claims) {
  // Ranks of one host may be in cgroups of their own: a limit is compared with those in it alone.
  using Key = std::tuple<NodeIdentity, uint64_t, FixedText<192>>;
  std::map<Key, HostShortage> sums;
  for (const auto& claim : claims) {
    if (claim.wanted_bytes == 0) continue;
    for (const auto& bound : claim.bounds) {
      if (!bound) continue;
      auto& sum = sums.try_emplace({claim.node, bound->group, bound->name},
                                   HostShortage{claim.node.name(), *bound})
                      .first->second;
      sum.bound.left_bytes = std::min(sum.bound.left_bytes, bound->left_bytes);
      sum.wanted_bytes = checked_add(sum.wanted_bytes, claim.wanted_bytes, "host memory");
      ++sum.ranks;
    }
  }
  std::vector<HostShortage> worst;
  for (const auto& [key, sum] : sums) {
    if (sum.wanted_bytes <= std::min(sum.bound.left_bytes, sum.bound.most_bytes)) continue;
    if (worst.empty() || worst.back().host != sum.host) {
      worst.push_back(sum);
    } else if (is_worse(sum, worst.back())) {
      worst.back() = sum;
    }
  }
  return worst;
}

void check_host_room(Job& job, uint64_t wanted_bytes) {
  const auto claims = job.all_gather_value(claim_here(job, wanted_bytes), "limits of host memory");
  for (const auto& shortage : host_shortages(claims)) {
    if (shortage.is_certain()) {
      job.fail_together(request_error(shortage.describe(), kRemedies));
    }
    if (job.rank() != 0) continue;
    log::warning(fmt::format("{}: the kernel may slow down or end a rank; {}", shortage.describe(),
                             kRemedies));
  }
}

}  // namespace awex
