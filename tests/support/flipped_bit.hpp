#pragma once

#include "memory/region.hpp"
#include "support/offloaded_bytes.hpp"

namespace awex::test {

/// Flips a bit in the middle of a region's first chunk: of its host backup where that holds the
/// bytes, else of the mapped memory, which the process must be able to write (backend host). A
/// second time repairs it.
inline void flip_bit(Region& region) {
  constexpr auto kBit = std::byte{0x10};
  const bool is_here = region.state() == RegionState::kResident;
  std::byte* bytes = is_here ? region.data() : offloaded_bytes(region, 0).data();
  bytes[region.range().chunking().used_bytes(0) / 2] ^= kBit;
}

}  // namespace awex::test
