#include "cycle/budget.hpp"

#include <algorithm>
#include <array>

namespace awex {

DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload) {
  const uint64_t all = needs.trainer_weights + needs.optimizer + needs.inference_weights +
                       needs.kv_cache + needs.staging;
  if (!offload) return {all, "the whole cycle"};
  const std::array<DevicePeak, 3> moments{
      DevicePeak{needs.trainer_weights + needs.optimizer + needs.staging, "the train step"},
      DevicePeak{needs.trainer_weights + needs.inference_weights + needs.staging, "the transfer"},
      DevicePeak{needs.inference_weights + needs.kv_cache + needs.staging, "the rollout"}};
  return *std::max_element(moments.begin(), moments.end(),
                           [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
}

}  // namespace awex
