#include "cycle/budget.hpp"

#include <algorithm>
#include <initializer_list>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "cycle/accounting.hpp"
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

void GpuNeeds::add(const DeviceNeeds& needs, bool offload) {
  const auto pair = peak_of_cycle(needs, offload);
  peak = checked_add(peak, pair.bytes, "the memory of a GPU");
  moment = pair.moment;
  pinned += host_bytes_of_cycle(needs, offload);
  of.trainer_weights += needs.trainer_weights;
  of.optimizer += needs.optimizer;
  of.inference_weights += needs.inference_weights;
  of.kv_cache += needs.kv_cache;
  of.staging += needs.staging;
}

std::optional<Error> lack_of_memory(const GpuNeeds& gpu, const BudgetRequest& request,
                                    const std::string& who) {
  const uint64_t budget = request.gpu_memory.value_or(gpu.free);
  if (gpu.peak <= std::min(budget, gpu.free)) return std::nullopt;
  return request_error(
      fmt::format("the GPU of {} needs {} in {}, and has {}: the trainer's weights are {}, its "
                  "optimizer state {}, inference's weights {}, its KV cache {}",
                  who, format_bytes(gpu.peak), gpu.moment,
                  budget < gpu.free ? format_bytes(budget) + " by --gpu-memory"
                                    : format_bytes(gpu.free) + " free",
                  format_bytes(gpu.of.trainer_weights), format_bytes(gpu.of.optimizer),
                  format_bytes(gpu.of.inference_weights), format_bytes(gpu.of.kv_cache)),
      request.offload
          ? "spread the model over more GPUs, keep fewer --layers, or shrink --kv-cache; an "
            "attached engine asks for its optimizer state and KV cache itself (memory=)"
          : "leave out --no-offload");
}

uint64_t gpu_budget(const GpuNeeds& gpu, const BudgetRequest& request, BackendKind backend,
                    size_t gpus) {
  constexpr uint64_t kDriverBytes = 1ULL << 30;  // contexts, NCCL
  uint64_t spare = 0;
  switch (backend) {
    case BackendKind::kCuda:
      spare = gpu.free - std::min(gpu.free, kDriverBytes + page_table_bytes(gpu.pinned));
      break;
    case BackendKind::kHost:
      spare = gpu.free / 2 / gpus;
      break;
  }
  return std::max(gpu.peak, std::min(request.gpu_memory.value_or(spare), gpu.free));
}

}  // namespace awex
