#include "doctor/link_speed.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {

MeasuredSpeed measure_speed(Device& device, Seconds longest, WaitMonitor& monitor) {
  constexpr uint64_t kHostProbeBytes = 16ULL << 20;
  constexpr uint64_t kGpuProbeBytes = 64ULL << 20;
  MeasuredSpeed measured;
  try {
    const bool on_gpu = device.kind() == BackendKind::kCuda;
    measured.limits = measure_link_limits(device, Deadline(longest), monitor,
                                          on_gpu ? kGpuProbeBytes : kHostProbeBytes);
    measured.done = 1;
  } catch (const Error& error) {
    measured.failure = fixed_text<256>(error.what());
  }
  return measured;
}

Finding judge_speed(const MeasuredSpeed& measured, BackendKind backend) {
  // Of PCIe 3.0 with four lanes: a data center's GPU has more.
  constexpr double kLeastLinkRate = 4e9;
  if (measured.done == 0) {
    return failed(text_of(measured.failure),
                  "see what else fails; nvidia-smi and top tell what else runs there");
  }
  const auto& limits = measured.limits;
  const auto rate = [](double bytes_per_s) { return fmt::format("{:.3g}", bytes_per_s / 1e9); };
  Finding finding = passed(fmt::format(
      "{} to host, {} back, {} {} (GB/s)", rate(limits.device_to_host), rate(limits.host_to_device),
      rate(limits.device_to_device), backend == BackendKind::kCuda ? "on the GPU" : "shared"));
  const double link = std::min(limits.device_to_host, limits.host_to_device);
  if (backend == BackendKind::kCuda && link < kLeastLinkRate) {
    finding = waived(finding.reason + ": a slow link",
                     "nvidia-smi -q -d PCIE tells the link's width and generation");
  }
  finding = with_value(std::move(finding), "to_host_bytes_per_s", limits.device_to_host);
  finding = with_value(std::move(finding), "from_host_bytes_per_s", limits.host_to_device);
  return with_value(std::move(finding), "on_device_bytes_per_s", limits.device_to_device);
}

}  // namespace awex
