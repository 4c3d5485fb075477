#pragma once

#include <algorithm>
#include <vector>

#include "comm/job.hpp"
#include "engine/engine.hpp"

namespace awex {

/// Which roles of a job are played by engines that attach, and what those ask for. The same on
/// every rank.
struct Roster {
  bool trainers = false;
  bool inference = false;
  bool admits_by_digest = false;   ///< EngineFactory::admits_by_digest.
  std::vector<EngineNeeds> needs;  ///< By rank; empty where nobody attaches.

  [[nodiscard]] bool any() const { return trainers || inference; }
  [[nodiscard]] bool attaches(Role role) const {
    return role == Role::kTrainer ? trainers : inference;
  }
  /// What a rank's engine asks for; nothing of one that is built in.
  [[nodiscard]] EngineNeeds of(int rank) const {
    return needs.empty() ? EngineNeeds{} : needs[static_cast<size_t>(rank)];
  }
};

/// Waits for the engines of all ranks, if any attach. Collective.
[[nodiscard]] Roster call_roster(Job& job, const EngineFactory& engines,
                                 const std::vector<int>& node_position, const Device& device);

}  // namespace awex
