#include "cycle/budget.hpp"

#include <algorithm>

namespace awex {

std::vector<CyclePhase> phases_of_cycle(const DeviceNeeds& needs, bool offload) {
  const uint64_t weights = needs.trainer_weights;
  const uint64_t optimizer = needs.optimizer;
  const uint64_t staging = needs.staging;
  if (!offload) {
    const uint64_t all = weights + optimizer + needs.inference_weights + needs.kv_cache + staging;
    return {{"train", "trainer", "", "the whole cycle", all, 0, 0},
            {"transfer", "both", "weights", "the whole cycle", all, 0, 0},
            {"rollout", "inference", "", "the whole cycle", all, 0, 0}};
  }
  const uint64_t training = weights + optimizer + staging;
  const uint64_t moving = weights + needs.inference_weights + staging;
  const uint64_t serving = needs.inference_weights + needs.kv_cache + staging;
  const uint64_t kept = weights + optimizer;
  return {{"train", "trainer", "", "the train step", training, 0, 0},
          {"offload", "trainer", "optimizer", "the train step", training, optimizer, optimizer},
          {"resume", "inference", "weights", "the transfer", moving, optimizer, 0},
          {"transfer", "both", "weights", "the transfer", moving, optimizer, 0},
          {"offload", "trainer", "weights", "the transfer", moving, kept, weights},
          {"resume", "inference", "kv_cache", "the rollout", serving, kept, 0},
          {"rollout", "inference", "", "the rollout", serving, kept, 0},
          {"resume", "trainer", "weights", "the train step", weights + staging, kept, weights},
          {"resume", "trainer", "optimizer", "the train step", training, optimizer, optimizer}};
}

DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload) {
  const auto phases = phases_of_cycle(needs, offload);
  const auto fullest = std::max_element(
      phases.begin(), phases.end(),
      [](const auto& a, const auto& b) { return a.device_bytes < b.device_bytes; });
  return {fullest->device_bytes, fullest->moment};
}

}  // namespace awex
