#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "memory/region.hpp"

namespace awex::test {

/// The host memory of a chunk that is offloaded, to be damaged; the product only reads it.
[[nodiscard]] inline std::span<std::byte> offloaded_bytes(const Region& region, uint64_t chunk) {
  const auto bytes = region.backup(chunk);
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

}  // namespace awex::test
