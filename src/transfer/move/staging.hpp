#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "memory/device.hpp"
#include "transfer/move/exchange.hpp"

namespace awex {

/// Owns an exchange's device memory: buffers for messages.
class Staging {
 public:
  static constexpr uint32_t kBuffers = 4;

  /// `device` must outlive it.
  explicit Staging(Device& device) : range_(device.reserve("messages", kStagingBytes)) {
    range_->take_chunks(0, range_->chunks());
  }

  [[nodiscard]] std::byte* buffer(uint32_t index) const {
    return range_->data() + index * kMessageBufferBytes;
  }
  [[nodiscard]] DeviceRange& range() const { return *range_; }

 private:
  std::unique_ptr<DeviceRange> range_;
};

}  // namespace awex
