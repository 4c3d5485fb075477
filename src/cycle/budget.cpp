#include "cycle/budget.hpp"

#include <algorithm>
#include <initializer_list>

#include "base/checked.hpp"
#include "memory/chunking.hpp"

namespace awex {
namespace {

uint64_t sum(std::initializer_list<uint64_t> parts) {
  uint64_t total = 0;
  for (const uint64_t part : parts) total = checked_add(total, part, "the memory of a device");
  return total;
}

/// What the regions of a device hold of it.
DeviceNeeds as_held(const DeviceNeeds& needs) {
  return {held_bytes_for(needs.trainer_weights), held_bytes_for(needs.optimizer),
          held_bytes_for(needs.inference_weights), held_bytes_for(needs.kv_cache),
          held_bytes_for(needs.staging)};
}

}  // namespace

std::vector<CyclePhase> phases_of_cycle(const DeviceNeeds& needs, bool offload,
                                        std::optional<uint64_t> budget) {
  const DeviceNeeds held = as_held(needs);
  const uint64_t staging = held.staging;
  if (!offload) {
    const uint64_t all =
        sum({held.trainer_weights, held.optimizer, held.inference_weights, held.kv_cache, staging});
    return {{"train", "trainer", "", "the whole cycle", all, 0, 0},
            {"transfer", "both", "weights", "the whole cycle", all, 0, 0},
            {"rollout", "inference", "", "the whole cycle", all, 0, 0}};
  }
  const uint64_t training = sum({held.trainer_weights, held.optimizer, staging});
  const uint64_t moving = sum({held.trainer_weights, held.inference_weights, staging});
  const uint64_t serving = sum({held.inference_weights, held.kv_cache, staging});
  // What both roles hold while one gives and the other takes.
  const auto both = [&](uint64_t least, uint64_t most) {
    return std::max(least, std::min(most, budget.value_or(least)));
  };
  const uint64_t arriving = both(moving, sum({training, held.inference_weights}));
  const uint64_t growing = both(serving, sum({moving, held.kv_cache}));
  const uint64_t returning = both(sum({held.optimizer, staging}), sum({serving, held.optimizer}));
  const uint64_t returned = both(training, sum({serving, held.trainer_weights, held.optimizer}));
  // Host memory and links see the bytes alone.
  const uint64_t weights = needs.trainer_weights;
  const uint64_t optimizer = needs.optimizer;
  const uint64_t kept = sum({weights, optimizer});
  return {{"train", "trainer", "", "the train step", training, 0, 0},
          {"offload", "trainer", "optimizer", "the train step", training, optimizer, optimizer},
          {"resume", "inference", "weights", "the transfer", arriving, optimizer, 0},
          {"transfer", "both", "weights", "the transfer", arriving, optimizer, 0},
          {"offload", "trainer", "weights", "the transfer", moving, kept, weights},
          {"resume", "inference", "kv_cache", "the rollout", growing, kept, 0},
          {"rollout", "inference", "", "the rollout", serving, kept, 0},
          {"resume", "trainer", "optimizer", "the train step", returning, kept, optimizer},
          {"resume", "trainer", "weights", "the train step", returned, weights, weights}};
}

DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload, std::optional<uint64_t> budget) {
  const auto phases = phases_of_cycle(needs, offload, budget);
  const auto fullest = std::max_element(
      phases.begin(), phases.end(),
      [](const auto& a, const auto& b) { return a.device_bytes < b.device_bytes; });
  return {fullest->device_bytes, fullest->moment};
}

uint64_t host_bytes_of_cycle(const DeviceNeeds& needs, bool offload) {
  uint64_t most = 0;
  for (const auto& phase : phases_of_cycle(needs, offload)) most = std::max(most, phase.host_bytes);
  return most;
}

}  // namespace awex
