#include "memory/blocks_ahead.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "support/host_blocks_device.hpp"

using namespace awex;
using awex::test::HostBlocksDevice;

namespace {

/// Host blocks as the host device makes them; `on_allocate` is told their bytes, on the thread that
/// makes them.
HostBlocksDevice::Allocate watched(std::function<void(uint64_t)> on_allocate) {
  return [on_allocate = std::move(on_allocate)](Device& host, uint64_t bytes) {
    on_allocate(bytes);
    return host.allocate_host(bytes);
  };
}

}  // namespace

TEST_CASE("blocks come in the order of their sizes, whichever is made first") {
  const std::vector<uint64_t> sizes{5000, 1, 70000, 2, 3, 9000};
  // The first of any two takes longest.
  HostBlocksDevice device(watched([](uint64_t bytes) {
    if (bytes >= 5000) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }));
  BlocksAhead ahead(device, sizes);
  for (const uint64_t size : sizes) {
    const auto block = ahead.next();
    CHECK(block->bytes().size() == size);
    CHECK(block->bytes().back() == std::byte{0});
  }
}

TEST_CASE("shared blocks are made eight at a time") {
  std::atomic<int> begun{0};
  std::atomic<bool> may_end{false};
  HostBlocksDevice device(watched([&](uint64_t /*bytes*/) {
    ++begun;
    while (!may_end) std::this_thread::yield();
  }));
  BlocksAhead ahead(device, std::vector<uint64_t>(9, 1), HostSharing::kShared);
  while (begun < 8) std::this_thread::yield();
  CHECK_FALSE(ahead.is_ready());
  CHECK(begun == 8);
  may_end = true;
  for (int i = 0; i < 9; ++i) CHECK(ahead.next()->bytes().size() == 1);
  CHECK(begun == 9);
}

TEST_CASE("two blocks are made at a time, and no more are begun than were asked for") {
  std::atomic<int> begun{0};
  std::atomic<bool> may_end{false};
  HostBlocksDevice device(watched([&](uint64_t /*bytes*/) {
    ++begun;
    while (!may_end) std::this_thread::yield();
  }));
  BlocksAhead ahead(device, {1, 2, 3});
  while (begun < 2) std::this_thread::yield();
  CHECK_FALSE(ahead.is_ready());
  CHECK(begun == 2);
  may_end = true;
  for (const uint64_t size : {1, 2, 3}) CHECK(ahead.next()->bytes().size() == size);
  CHECK(begun == 3);
}

TEST_CASE("a failure comes when its block is asked for, and those before it are whole") {
  HostBlocksDevice device(watched([](uint64_t bytes) {
    if (bytes == 2) throw runtime_error("cannot pin 2 B");
  }));
  BlocksAhead ahead(device, {1, 2, 3});
  CHECK(ahead.next()->bytes().size() == 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(ahead.next()), "cannot pin 2 B", Error);
}

TEST_CASE("nothing is made where nothing is missing") {
  int made = 0;
  HostBlocksDevice device(watched([&](uint64_t /*bytes*/) { ++made; }));
  { const BlocksAhead ahead(device, {}); }
  CHECK(made == 0);
}
