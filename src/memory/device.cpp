#include "memory/device.hpp"

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
  constexpr uint64_t kSmallest = 64ULL << 20;
  constexpr uint64_t kStep = 2ULL << 20;
  return std::max(kSmallest, round_up(ceil_div(bytes, kMaxChunks), kStep));
}

}  // namespace awex
