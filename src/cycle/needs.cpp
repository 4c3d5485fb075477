#include "cycle/needs.hpp"

#include <utility>

#include "engine/optimizer_state.hpp"
#include "layout/trainer_scales.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {
namespace {

/// Bytes of a rank's weights and of what an optimizer keeps for them.
struct Held {
  uint64_t weights = 0;
  uint64_t optimizer = 0;
};

/// By role rank. `scaled` is the held catalogue for trainers.
std::vector<Held> held_by_ranks(const Layout& layout, const Catalogue* scaled) {
  std::vector<Held> held;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    if (const uint32_t like = layout.first_like(rank); like != rank) {
      held.push_back(held[like]);
      continue;
    }
    RankLayout own = layout.rank_layout(rank);
    const uint64_t optimizer = OptimizerState(own).bytes();
    if (scaled != nullptr) own = add_scales(std::move(own), *scaled);
    held.push_back({own.bytes, optimizer});
  }
  return held;
}

}  // namespace

std::vector<DeviceNeeds> needs_of_devices(const Layout& trainer, const Layout& inference,
                                          const Catalogue& held, const Placement& placement,
                                          const Belongings& belongings) {
  std::vector<DeviceNeeds> needs(placement.device_node.size());
  for (auto& device : needs) {
    device.kv_cache = belongings.kv_cache_bytes;
    device.staging = belongings.staging ? kStagingBytes : 0;
  }
  const auto trainers = held_by_ranks(trainer, &held);
  for (size_t rank = 0; rank < trainers.size(); ++rank) {
    auto& device = needs[placement.trainer_device[rank]];
    device.trainer_weights = trainers[rank].weights;
    if (belongings.optimizer) device.optimizer = trainers[rank].optimizer;
  }
  const auto receivers = held_by_ranks(inference, nullptr);
  for (size_t rank = 0; rank < receivers.size(); ++rank) {
    needs[placement.inference_device[rank]].inference_weights = receivers[rank].weights;
  }
  return needs;
}

}  // namespace awex
