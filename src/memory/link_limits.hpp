#pragma once

#include <cstdint>

#include "base/wait.hpp"
#include "memory/device.hpp"

namespace awex {

/// What plain copies reach on a device's links, in payload bytes per second: a copy on the device
/// reads and writes each of these bytes.
struct LinkLimits {
  double device_to_host = 0;
  double host_to_device = 0;
  double device_to_device = 0;
};

/// The size of the copies that are timed: long enough for full speed, well beyond the caches of a
/// GPU, or of a processor.
[[nodiscard]] constexpr uint64_t link_probe_bytes(BackendKind kind) {
  return (kind == BackendKind::kCuda ? 256ULL : 64ULL) << 20;
}

/// Times plain copies of `probe_bytes`, each direction alone, and takes the best of several after a
/// warm-up. Takes twice `probe_bytes` of device memory and once of host memory meanwhile. Throws
/// what the device and the monitor throw, and Error(kDeadline). Not collective; ranks that share a
/// link must measure one after the other.
[[nodiscard]] LinkLimits measure_link_limits(Device& device, const Deadline& deadline,
                                             WaitMonitor& monitor, uint64_t probe_bytes);

}  // namespace awex
