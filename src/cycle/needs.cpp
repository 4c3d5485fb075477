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
  uint64_t scales = 0;  ///< That trainers hold for inference.
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
    const uint64_t weights = own.bytes;
    if (scaled != nullptr) own = add_scales(std::move(own), *scaled);
    held.push_back({weights, optimizer, own.bytes - weights});
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
    const auto& own = trainers[rank];
    device.trainer_weights = own.weights + own.scales;
    if (belongings.optimizer) device.optimizer = own.optimizer;
    if (belongings.trainers.empty()) continue;
    const auto& asked = belongings.trainers[rank];
    device.trainer_weights = room_for_weights(own.weights, asked) + own.scales;
    device.optimizer = asked.optimizer;
  }
  const auto receivers = held_by_ranks(inference, nullptr);
  for (size_t rank = 0; rank < receivers.size(); ++rank) {
    auto& device = needs[placement.inference_device[rank]];
    device.inference_weights = receivers[rank].weights;
    if (belongings.inference.empty()) continue;
    const auto& asked = belongings.inference[rank];
    device.inference_weights = room_for_weights(receivers[rank].weights, asked);
    device.kv_cache = asked.kv_cache;
  }
  return needs;
}

}  // namespace awex
