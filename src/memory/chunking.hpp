#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/checked.hpp"

namespace awex {

/// Physical memory is taken in multiples of this: the granularity of today's GPUs, and of huge
/// pages.
inline constexpr uint64_t kPhysicalStepBytes = 2ULL << 20;

/// Ranges never have more chunks than this, so that their handles fit a fixed-size record.
inline constexpr uint64_t kMaxChunks = 256;

/// The chunk size for a range of `bytes` (> 0): an eighth, but not below 64 MiB nor above 1 GiB,
/// except where kMaxChunks would not suffice; a multiple of kPhysicalStepBytes that splits the
/// range evenly. Few large chunks cost few driver calls: each one that maps memory beside a running
/// copy waits about a millisecond on a GPU. Enough chunks remain for memory to flow from one role
/// to the other.
[[nodiscard]] uint64_t chunk_bytes_for(uint64_t bytes);

/// What a range of `bytes` holds of a device when all of it is taken.
[[nodiscard]] constexpr uint64_t held_bytes_for(uint64_t bytes) {
  return round_up(bytes, kPhysicalStepBytes);
}

/// How a range of `bytes` (> 0) is cut into chunks: all of `chunk_bytes`, but the last one, which
/// holds no more than it uses, rounded up to kPhysicalStepBytes.
struct Chunking {
  std::string name;  ///< Of the range, for messages.
  uint64_t bytes = 0;
  uint64_t chunk_bytes = 0;

  [[nodiscard]] uint64_t count() const { return ceil_div(bytes, chunk_bytes); }
  /// Where chunk `chunk` begins in the range.
  [[nodiscard]] uint64_t begin(uint64_t chunk) const { return chunk * chunk_bytes; }
  [[nodiscard]] uint64_t used_bytes(uint64_t chunk) const {
    return std::min(chunk_bytes, bytes - begin(chunk));
  }
  /// Physical bytes of `chunks` chunks from chunk `first` on.
  [[nodiscard]] uint64_t held_bytes(uint64_t first, uint64_t chunks) const {
    return std::min(chunks * chunk_bytes, held_bytes_for(bytes) - begin(first));
  }
  /// "chunk 2 of 8 of "weights" (1 GB)", "chunks 2 to 8 of 8 of "weights" (7 GB)".
  [[nodiscard]] std::string describe(uint64_t first, uint64_t chunks) const;
};

}  // namespace awex
