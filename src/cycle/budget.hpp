#pragma once

#include <cstdint>
#include <string>

namespace awex {

/// Bytes of one device by what they are for.
struct DeviceNeeds {
  uint64_t trainer_weights = 0;
  uint64_t optimizer = 0;
  uint64_t inference_weights = 0;
  uint64_t kv_cache = 0;
  uint64_t staging = 0;  ///< For messages between devices; held throughout.
};

/// The fullest moment of a cycle on one device.
struct DevicePeak {
  uint64_t bytes = 0;
  std::string moment;  ///< "the train step", "the transfer", "the rollout", "the whole cycle".
};

/// Host memory that the trainer's offloaded bytes take.
[[nodiscard]] uint64_t host_bytes_of_cycle(const DeviceNeeds& needs, bool offload);

/// The peak of the strictly sequential cycle; without offloading everything is resident throughout.
[[nodiscard]] DevicePeak peak_of_cycle(const DeviceNeeds& needs, bool offload);

}  // namespace awex
