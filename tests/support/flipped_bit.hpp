#pragma once

#include "memory/region.hpp"
#include "support/offloaded_bytes.hpp"

namespace awex::test {

/// Flips bits of a byte in host memory, or in device memory that the process can write. Programs
/// get it from the library awex_damage.
void flip_bits(std::byte* where, std::byte bits);

/// Flips a bit in the middle of a region's first chunk: of its host backup where that holds the
/// bytes, else of its device memory. A second time repairs it.
inline void flip_bit(Region& region) {
  constexpr auto kBit = std::byte{0x10};
  const bool is_here = region.state() == RegionState::kResident;
  std::byte* bytes = is_here ? region.data() : offloaded_bytes(region, 0).data();
  flip_bits(bytes + region.range().chunking().used_bytes(0) / 2, kBit);
}

}  // namespace awex::test
