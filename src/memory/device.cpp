#include "memory/device.hpp"

#include <algorithm>

#include "base/checked.hpp"

namespace awex {

const char* backend_name(BackendKind kind) {
  switch (kind) {
    case BackendKind::kHost:
      return "host";
    case BackendKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

uint64_t chunk_bytes_for(uint64_t bytes) {
  constexpr uint64_t kStep = 2ULL << 20;
  constexpr uint64_t kSmallest = 64ULL << 20;
  constexpr uint64_t kLargest = 1ULL << 30;
  constexpr uint64_t kUsualChunks = 8;
  const uint64_t wanted = std::clamp(ceil_div(bytes, kUsualChunks), kSmallest, kLargest);
  // Equal chunks, so that rounding the last one up wastes little.
  const uint64_t chunks = std::min(ceil_div(bytes, wanted), kMaxChunks);
  return round_up(ceil_div(bytes, chunks), kStep);
}

uint64_t held_bytes_for(uint64_t bytes) {
  return bytes == 0 ? 0 : round_up(bytes, chunk_bytes_for(bytes));
}

}  // namespace awex
