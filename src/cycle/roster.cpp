#include "cycle/roster.hpp"

namespace awex {

Roster call_roster(Job& job, const EngineFactory& engines, const std::vector<int>& node_position,
                   const Device& device) {
  Roster roster{.trainers = engines.attaches(Role::kTrainer),
                .inference = engines.attaches(Role::kInference),
                .admits_by_digest = engines.admits_by_digest(),
                .needs = {}};
  if (!roster.any()) return roster;
  const auto me = static_cast<size_t>(job.rank());
  EngineNeeds needs;
  job.do_and_agree([&] {
    const auto position = static_cast<uint32_t>(node_position[me]);
    needs = engines.await_engine(job.peers()[me].role, position, device, job);
  });
  roster.needs = job.all_gather_value(needs, "what the engines ask for");
  return roster;
}

}  // namespace awex
