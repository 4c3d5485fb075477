#include "memory/blocks_ahead.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "base/error.hpp"

using namespace awex;

namespace {

/// The host device, but for host blocks: `on_allocate` is told their bytes, on the thread that
/// makes them.
class WatchedDevice final : public Device {
 public:
  explicit WatchedDevice(std::function<void(uint64_t)> on_allocate)
      : on_allocate_(std::move(on_allocate)), host_(make_host_device(0, 1)) {}

  [[nodiscard]] BackendKind kind() const override { return BackendKind::kHost; }
  [[nodiscard]] const DeviceIdentity& identity() const override { return host_->identity(); }
  [[nodiscard]] std::unique_ptr<DeviceRange> reserve(const std::string& name,
                                                     uint64_t bytes) override {
    return host_->reserve(name, bytes);
  }
  [[nodiscard]] std::unique_ptr<ImportedRange> reserve_import(const std::string& name,
                                                              uint64_t bytes,
                                                              uint64_t chunk_bytes) override {
    return host_->reserve_import(name, bytes, chunk_bytes);
  }
  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes) override {
    on_allocate_(bytes);
    return host_->allocate_host(bytes);
  }
  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override { return host_->make_queue(); }
  [[nodiscard]] DeviceMemory memory() const override { return host_->memory(); }

 private:
  std::function<void(uint64_t)> on_allocate_;
  std::unique_ptr<Device> host_;
};

}  // namespace

TEST_CASE("blocks come in the order of their sizes, whichever is made first") {
  const std::vector<uint64_t> sizes{5000, 1, 70000, 2, 3, 9000};
  // The first of any two takes longest.
  WatchedDevice device([](uint64_t bytes) {
    if (bytes >= 5000) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  BlocksAhead ahead(device, sizes);
  for (const uint64_t size : sizes) {
    const auto block = ahead.next();
    CHECK(block->bytes().size() == size);
    CHECK(block->bytes().back() == std::byte{0});
  }
}

TEST_CASE("two blocks are made at a time, and no more are begun than were asked for") {
  std::atomic<int> begun{0};
  std::atomic<bool> may_end{false};
  WatchedDevice device([&](uint64_t /*bytes*/) {
    ++begun;
    while (!may_end) std::this_thread::yield();
  });
  BlocksAhead ahead(device, {1, 2, 3});
  while (begun < 2) std::this_thread::yield();
  CHECK_FALSE(ahead.is_ready());
  CHECK(begun == 2);
  may_end = true;
  for (const uint64_t size : {1, 2, 3}) CHECK(ahead.next()->bytes().size() == size);
  CHECK(begun == 3);
}

TEST_CASE("a failure comes when its block is asked for, and those before it are whole") {
  WatchedDevice device([](uint64_t bytes) {
    if (bytes == 2) throw runtime_error("cannot pin 2 B");
  });
  BlocksAhead ahead(device, {1, 2, 3});
  CHECK(ahead.next()->bytes().size() == 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(ahead.next()), "cannot pin 2 B", Error);
}

TEST_CASE("nothing is made where nothing is missing") {
  int made = 0;
  WatchedDevice device([&](uint64_t /*bytes*/) { ++made; });
  { const BlocksAhead ahead(device, {}); }
  CHECK(made == 0);
}
