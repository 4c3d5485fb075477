#include "memory/link_limits.hpp"

#include <algorithm>

namespace awex {
namespace {

constexpr int kRounds = 6;

/// A range with all its chunks backed; gives them back with itself.
std::unique_ptr<DeviceRange> take_range(Device& device, const char* name, uint64_t bytes) {
  auto range = device.reserve(name, bytes);
  range->take_chunks(0, range->chunks());
  return range;
}

}  // namespace

LinkLimits measure_link_limits(Device& device, const Deadline& deadline, WaitMonitor& monitor,
                               uint64_t probe_bytes) {
  const auto source = take_range(device, "link probe source", probe_bytes);
  const auto target = take_range(device, "link probe target", probe_bytes);
  const auto host = device.allocate_host(probe_bytes);
  // After all it copies between, so that it goes first and lets copies in flight end.
  const auto queue = device.make_queue();
  queue->fill_zero(source->data(), probe_bytes);

  // Several copies in a row, so that queuing and polling do not count, and a link that was asleep
  // has time to wake.
  const auto best_of = [&](std::byte* to, const std::byte* from, int copies, const char* what) {
    double best = 0;
    for (int round = 0; round <= kRounds; ++round) {
      queue->finish(what, deadline, monitor);
      const Stopwatch watch;
      for (int i = 0; i < copies; ++i) queue->copy(to, from, probe_bytes);
      queue->finish(what, deadline, monitor);
      const double rate = static_cast<double>(probe_bytes) * copies / watch.seconds();
      if (round > 0) best = std::max(best, rate);  // the first one warms up
    }
    return best;
  };

  constexpr int kCopiesOverLink = 4;
  constexpr int kCopiesOnDevice = 8;
  LinkLimits limits;
  limits.device_to_host = best_of(host->bytes().data(), source->data(), kCopiesOverLink,
                                  "measuring device to host copies");
  limits.host_to_device = best_of(source->data(), host->bytes().data(), kCopiesOverLink,
                                  "measuring host to device copies");
  limits.device_to_device =
      best_of(target->data(), source->data(), kCopiesOnDevice, "measuring copies on the device");
  return limits;
}

}  // namespace awex
