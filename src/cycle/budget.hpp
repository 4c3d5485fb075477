#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "memory/device.hpp"

namespace awex {

/// Bytes of one device by what they are for.
struct DeviceNeeds {
  uint64_t trainer_weights = 0;
  uint64_t optimizer = 0;
  uint64_t inference_weights = 0;
  uint64_t kv_cache = 0;
  uint64_t staging = 0;  ///< For bytes on their way between devices; held throughout.
};

/// A phase of a cycle as one device's two ranks go through it.
struct CyclePhase {
  std::string
      phase;  ///< "train", "offload", "transfer", …, and "rollout", which reports leave out.
  std::string role;           ///< "trainer", "inference", or "both".
  std::string tag;            ///< Empty when it concerns no memory of its own.
  std::string moment;         ///< For messages: "the train step", "the transfer", "the rollout".
  uint64_t device_bytes = 0;  ///< Held, in whole steps, at the fullest moment of the phase.
  uint64_t host_bytes = 0;    ///< Kept in pinned host memory then.
  uint64_t link_bytes = 0;    ///< Moved between host and device, either way.
};

/// The phases of a cycle, in order; without offloading everything is resident throughout. Inference
/// takes its weights and its KV cache while the trainer gives memory back, and the trainer takes
/// its memory while inference gives, as early as `budget` bytes of the device allow. Without a
/// budget each takes when the other has given all: that is the least memory that a cycle needs.
[[nodiscard]] std::vector<CyclePhase> phases_of_cycle(const DeviceNeeds& needs, bool offload,
                                                      std::optional<uint64_t> budget = {});

/// The fullest moment of a cycle on one device.
struct DevicePeak {
  uint64_t bytes = 0;
  std::string moment;  ///< "the train step", "the transfer", "the rollout", "the whole cycle".
};

/// Of phases_of_cycle.
[[nodiscard]] DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload,
                                       std::optional<uint64_t> budget = {});

/// The most host memory that the trainer's offloaded bytes take at a time.
[[nodiscard]] uint64_t host_bytes_of_cycle(const DeviceNeeds& needs, bool offload);

/// What the pairs of ranks on a GPU need together, at least, and may have.
struct GpuNeeds {
  uint64_t peak = 0;
  std::string moment;   ///< Of the fullest pair.
  DeviceNeeds of;       ///< What they hold in all, at whatever times.
  uint64_t pinned = 0;  ///< Host memory for what they offload.
  uint64_t free = std::numeric_limits<uint64_t>::max();

  /// Adds what a pair needs.
  void add(const DeviceNeeds& needs, bool offload);
};

/// Who asks for how much of a GPU.
struct BudgetRequest {
  std::optional<uint64_t> gpu_memory;  ///< As typed; absent: what is free.
  bool offload = true;
};

/// The error when a GPU has not the least that the cycles on it need; `who` is a rank on it.
[[nodiscard]] std::optional<Error> lack_of_memory(const GpuNeeds& gpu, const BudgetRequest& request,
                                                  const std::string& who);

/// What the ranks on a GPU may hold together: as asked for, or what is free, less what the driver
/// will take for itself; on host, where one memory serves all `gpus` of a node and what they
/// offload, a part. At least what they need.
[[nodiscard]] uint64_t gpu_budget(const GpuNeeds& gpu, const BudgetRequest& request,
                                  BackendKind backend, size_t gpus);

/// The memory that may be held.
struct Budget {
  uint64_t gpu_bytes = 0;   ///< By all ranks on this rank's GPU together.
  uint64_t host_bytes = 0;  ///< By this rank: what it offloads, and on host what stands in for the
                            ///< memory of its device.
};

}  // namespace awex
