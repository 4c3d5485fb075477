#include "memory/chunking.hpp"

#include "base/units.hpp"

namespace awex {

uint64_t chunk_bytes_for(uint64_t bytes) {
  constexpr uint64_t kSmallest = 64ULL << 20;
  constexpr uint64_t kLargest = 1ULL << 30;
  constexpr uint64_t kUsualChunks = 8;
  const uint64_t wanted = std::clamp(ceil_div(bytes, kUsualChunks), kSmallest, kLargest);
  const uint64_t chunks = std::min(ceil_div(bytes, wanted), kMaxChunks);
  return round_up(ceil_div(bytes, chunks), kPhysicalStepBytes);
}

std::string Chunking::describe(uint64_t first, uint64_t chunks) const {
  const auto which = chunks == 1 ? fmt::format("chunk {}", first + 1)
                                 : fmt::format("chunks {} to {}", first + 1, first + chunks);
  const uint64_t held = first < count() ? held_bytes(first, chunks) : 0;
  return fmt::format("{} of {} of \"{}\" ({})", which, count(), name, format_bytes(held));
}

}  // namespace awex
