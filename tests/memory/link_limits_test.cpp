#include "memory/link_limits.hpp"

#include <doctest/doctest.h>

#include "base/error.hpp"

using namespace awex;

namespace {

constexpr uint64_t kProbeBytes = 4ULL << 20;

/// Fails from its n-th poll on.
class FailingMonitor final : public WaitMonitor {
 public:
  explicit FailingMonitor(int polls) : polls_(polls) {}
  void poll() override {
    if (--polls_ < 0) throw Error(ExitCode::kPeerLost, "a peer is gone");
  }

 private:
  int polls_;
};

}  // namespace

TEST_CASE("limits are measured in every direction and the memory is given back") {
  const auto device = make_host_device(0, 2);
  const uint64_t before = device->memory().free_bytes;
  NoMonitor monitor;
  const auto limits = measure_link_limits(*device, Deadline(Seconds(60)), monitor, kProbeBytes);
  // Slower than any memory, faster than no copy at all.
  for (const double rate :
       {limits.device_to_host, limits.host_to_device, limits.device_to_device}) {
    CHECK(rate > 1e6);
    CHECK(rate < 1e14);
  }
  CHECK(device->memory().free_bytes == before);
}

TEST_CASE("a peer that is lost while measuring ends it, and the memory is given back") {
  const auto device = make_host_device(0, 1);
  const uint64_t before = device->memory().free_bytes;
  FailingMonitor monitor(3);
  CHECK_THROWS_AS((void)measure_link_limits(*device, Deadline(Seconds(60)), monitor, kProbeBytes),
                  Error);
  CHECK(device->memory().free_bytes == before);
}
