#pragma once

#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <vector>

#include "memory/device.hpp"

namespace awex {

/// Makes host blocks in the order in which they will be needed. Private ones two at a time: while
/// one is pinned, which one thread does, the device's threads touch the next. Shared ones eight at
/// a time, each touched by one thread: threads that touch one file wait for each other. Call it
/// from one thread.
class BlocksAhead {
 public:
  /// Begins with the first blocks of these `sizes_bytes`. `device` must outlive it.
  BlocksAhead(Device& device, std::vector<uint64_t> sizes_bytes,
              HostSharing sharing = HostSharing::kPrivate);
  BlocksAhead(const BlocksAhead&) = delete;
  BlocksAhead& operator=(const BlocksAhead&) = delete;
  BlocksAhead(BlocksAhead&&) = delete;
  BlocksAhead& operator=(BlocksAhead&&) = delete;
  /// Waits for what is being made, and frees it.
  ~BlocksAhead() = default;

  /// Whether `next` would return at once. One block more than were asked for is an error.
  [[nodiscard]] bool is_ready() const;
  /// The next block; blocks until it is made, and throws what making it threw.
  [[nodiscard]] std::unique_ptr<HostBlock> next();

 private:
  void begin();

  Device& device_;
  std::vector<uint64_t> sizes_bytes_;
  HostSharing sharing_;
  size_t begun_ = 0;
  std::deque<std::future<std::unique_ptr<HostBlock>>> making_;
};

}  // namespace awex
