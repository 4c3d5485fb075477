#include "memory/warm_up.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "support/host_blocks_device.hpp"
#include "support/renewing_monitor.hpp"

using namespace awex;
using awex::test::HostBlocksDevice;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;
/// The size of a region in three chunks of 64 MiB, of which no memory is ever touched.
constexpr uint64_t kThreeChunks = 192 * kMiB;

/// A host block without memory: nobody reads these.
class EmptyBlock final : public HostBlock {
 public:
  explicit EmptyBlock(uint64_t bytes) : bytes_(bytes) {}
  [[nodiscard]] std::span<std::byte> bytes() const override {
    return {static_cast<std::byte*>(nullptr), bytes_};
  }
  [[nodiscard]] int fd() const override { return -1; }

 private:
  uint64_t bytes_;
};

/// Blocks without memory; `on_allocate` is told which one is asked for, from 1. Two are asked for
/// at a time, from two threads.
HostBlocksDevice::Allocate scripted(std::function<void(int)> on_allocate) {
  const auto allocations = std::make_shared<std::atomic<int>>(0);
  return [on_allocate = std::move(on_allocate), allocations](Device& /*host*/, uint64_t bytes) {
    on_allocate(++*allocations);
    return std::make_unique<EmptyBlock>(bytes);
  };
}

/// A gate that holds the background thread until the test opens it.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_for_visitors(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

class LostPeer final : public WaitMonitor {
 public:
  void poll() override { throw Error(ExitCode::kPeerLost, "rank 3 is gone"); }
};

}  // namespace

TEST_CASE("regions are prepared in their order, and each is told of once") {
  NoMonitor monitor;
  HostBlocksDevice device(scripted([](int) {}));
  Region first(device, "trainer optimizer", Tag::kOptimizer, kThreeChunks);
  Region second(device, "trainer weights", Tag::kWeights, kThreeChunks + 5);
  Region other(device, "trainer other", Tag::kKvCache, kMiB);
  WarmUp warm_up({&first, &second});
  const auto done = warm_up.finish(second, Deadline(Seconds(60)), monitor);
  REQUIRE(done.has_value());
  CHECK(done->bytes == kThreeChunks + 5);
  CHECK(first.host_bytes() == kThreeChunks);
  CHECK_FALSE(warm_up.finish(second, Deadline(Seconds(60)), monitor).has_value());
  CHECK(warm_up.finish(first, Deadline(Seconds(60)), monitor).has_value());
  CHECK_FALSE(warm_up.finish(other, Deadline(Seconds(60)), monitor).has_value());
  CHECK(other.host_bytes() == 0);
}

TEST_CASE("a region can be taken and used while its host memory is prepared") {
  NoMonitor monitor;
  Gate gate;
  HostBlocksDevice device(scripted([&](int /*number*/) { gate.pass(); }));
  Region region(device, "trainer weights", Tag::kWeights, kThreeChunks);
  WarmUp warm_up({&region});
  gate.wait_for_visitors(1);
  region.take(Deadline(Seconds(60)), monitor);
  region.data()[kThreeChunks - 1] = std::byte{7};
  CHECK(region.state() == RegionState::kResident);
  CHECK(region.host_bytes() == 0);
  gate.open();
  CHECK(warm_up.finish(region, Deadline(Seconds(60)), monitor)->bytes == kThreeChunks);
  CHECK(region.data()[kThreeChunks - 1] == std::byte{7});
}

TEST_CASE("a failure surfaces where the region is asked for, with its name, bytes and tag") {
  NoMonitor monitor;
  // The last chunk is told by its size: which of two threads asks first is anyone's guess.
  HostBlocksDevice device([](Device& /*host*/, uint64_t bytes) -> std::unique_ptr<HostBlock> {
    if (bytes < 64 * kMiB) throw runtime_error("cannot pin 67.1 MB: no more", "ask for less");
    return std::make_unique<EmptyBlock>(bytes);
  });
  Region region(device, "trainer optimizer", Tag::kOptimizer, kThreeChunks - 5);
  WarmUp warm_up({&region});
  try {
    static_cast<void>(warm_up.finish(region, Deadline(Seconds(60)), monitor));
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) ==
          "cannot prepare host memory for \"trainer optimizer\" (201 MB), 134 MB of it done: "
          "cannot pin 67.1 MB: no more");
    CHECK(error.code() == ExitCode::kRuntime);
    CHECK(error.hint() == "ask for less");
    CHECK(error.context().tag == "optimizer");
  }
}

TEST_CASE("the wait for a region ends with the deadline and with the job") {
  Gate gate;
  HostBlocksDevice device(scripted([&](int) { gate.pass(); }));
  Region region(device, "trainer optimizer", Tag::kOptimizer, kThreeChunks);
  WarmUp warm_up({&region});
  NoMonitor alone;
  try {
    static_cast<void>(warm_up.finish(region, Deadline(Seconds(0.05)), alone));
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
    CHECK(std::string(error.what()).find("\"trainer optimizer\" (201 MB)") != std::string::npos);
  }
  LostPeer lost;
  CHECK_THROWS_WITH_AS(static_cast<void>(warm_up.finish(region, Deadline(Seconds(60)), lost)),
                       "rank 3 is gone", Error);
  gate.open();
}

TEST_CASE("memory that comes slowly is waited for as long as it comes") {
  // Eight blocks, two at a time.
  HostBlocksDevice device(
      scripted([](int) { std::this_thread::sleep_for(std::chrono::milliseconds(400)); }));
  Region first(device, "trainer optimizer", Tag::kOptimizer, kThreeChunks);
  Region second(device, "trainer weights", Tag::kWeights, kThreeChunks + 100 * kMiB);
  WarmUp warm_up({&first, &second});
  test::RenewingMonitor monitor;
  CHECK(warm_up.finish(second, Deadline(Seconds(1.2)), monitor).has_value());
  REQUIRE(monitor.told.size() > 2);
  CHECK(monitor.told.front().done_bytes > 0);
  CHECK(monitor.told.front().all_bytes == 2 * kThreeChunks + 100 * kMiB);
  CHECK_FALSE(monitor.told.front().ended);
  CHECK(monitor.told.back().ended);
}

TEST_CASE("its end gives up what is not prepared yet") {
  std::atomic<int> allocations{0};
  Gate gate;
  HostBlocksDevice device(scripted([&](int /*number*/) {
    ++allocations;
    gate.pass();
  }));
  Region first(device, "trainer optimizer", Tag::kOptimizer, kThreeChunks);
  Region second(device, "trainer weights", Tag::kWeights, kThreeChunks);
  {
    WarmUp warm_up({&first, &second});
    gate.wait_for_visitors(2);
    // The thread must not see the gate open before it is told to stop.
    warm_up.stop();
    gate.open();
  }
  CHECK(allocations <= 3);
  CHECK(first.host_bytes() <= 64 * kMiB);
  CHECK(second.host_bytes() == 0);
}
