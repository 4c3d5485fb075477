#include "cycle/budget.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/checked.hpp"

namespace awex {

namespace {

uint64_t sum(std::initializer_list<uint64_t> parts) {
  uint64_t total = 0;
  for (const uint64_t part : parts) total = checked_add(total, part, "the memory of a device");
  return total;
}

}  // namespace

uint64_t host_bytes_of_cycle(const DeviceNeeds& needs, bool offload) {
  return offload ? sum({needs.trainer_weights, needs.optimizer}) : 0;
}

DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload) {
  const auto& [trainer, optimizer, inference, kv_cache, staging] = needs;
  if (!offload) return {sum({trainer, optimizer, inference, kv_cache, staging}), "the whole cycle"};
  const std::array<DevicePeak, 3> moments{
      DevicePeak{sum({trainer, optimizer, staging}), "the train step"},
      DevicePeak{sum({trainer, inference, staging}), "the transfer"},
      DevicePeak{sum({inference, kv_cache, staging}), "the rollout"}};
  return *std::max_element(moments.begin(), moments.end(),
                           [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
}

}  // namespace awex
