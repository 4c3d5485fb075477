#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "plan/plan.hpp"
#include "plan/plan_copies.hpp"

namespace awex {

/// The copies between devices that one inference rank takes part in. It sends for the trainer on
/// its device: sources are in that trainer's region, targets in the receiver's.
struct ExchangedCopies {
  using ByPeer = std::map<uint32_t, std::vector<MergedCopy>>;

  uint32_t me = 0;     ///< Inference role rank, as all ranks here.
  uint32_t ranks = 0;  ///< Of the job's inference.
  ByPeer sends;        ///< By receiver; never the own.
  ByPeer receives;     ///< By sender.

  [[nodiscard]] bool empty() const { return sends.empty() && receives.empty(); }
};

/// What of a plan inference rank `me` sends and receives. Pure; the two ends of a pair get the same
/// copies in the same order, because both evaluate this on the same plan.
[[nodiscard]] ExchangedCopies exchanged_copies(const Plan& plan, const Placement& placement,
                                               uint32_t me);

}  // namespace awex
