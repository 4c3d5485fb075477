#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "memory/chunking.hpp"
#include "memory/device.hpp"

namespace awex {

/// A range of device memory that a process offers others: plain data of a fixed size, to be swapped
/// between all ranks. All zero where nothing is offered.
struct OfferedRange {
  uint64_t bytes = 0;
  uint64_t chunk_bytes = 0;
  uint32_t chunk_count = 0;
  std::array<int32_t, kMaxChunks> fds{};  ///< Descriptor numbers in the offering process.

  /// Those that are offered.
  [[nodiscard]] std::span<const int32_t> numbers() const;
};
static_assert(std::is_trivially_copyable_v<OfferedRange>);

/// The offer of a range whose chunks are all backed; its descriptors stay the range's. Throws what
/// DeviceRange::export_fds throws.
[[nodiscard]] OfferedRange offer(DeviceRange& range);

}  // namespace awex
