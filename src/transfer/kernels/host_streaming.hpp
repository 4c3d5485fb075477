#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/// Copies past the caches. A store that goes through them first reads the line that it overwrites:
/// three passes over memory instead of two. memcpy knows that and avoids it for large blocks, but
/// not for a row of some hundred bytes, of which a strided copy has millions.

namespace awex {

inline constexpr uint64_t kCacheLineBytes = 64;

/// Of shorter rows too few whole lines are left to gain by it.
inline constexpr uint64_t kLeastStreamedBytes = 256;

#if defined(__SSE2__)

/// memcpy of which whole cache lines of the target go past the caches. Other threads see them after
/// finish_streaming.
inline void stream_row(std::byte* to, const std::byte* from, uint64_t bytes) {
  const uint64_t to_line = -reinterpret_cast<uintptr_t>(to) % kCacheLineBytes;
  const uint64_t head = std::min(bytes, to_line);
  const uint64_t streamed = (bytes - head) / kCacheLineBytes * kCacheLineBytes;
  std::memcpy(to, from, head);
  for (uint64_t at = head; at < head + streamed; at += sizeof(__m128i)) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  }
  std::memcpy(to + head + streamed, from + head + streamed, bytes - head - streamed);
}

inline void finish_streaming() { _mm_sfence(); }

#else

inline void stream_row(std::byte* to, const std::byte* from, uint64_t bytes) {
  std::memcpy(to, from, bytes);
}

inline void finish_streaming() {}

#endif

/// Copies `rows` rows of `bytes` bytes, which are `from_stride` and `to_stride` bytes apart.
inline void stream_rows(std::byte* to, uint64_t to_stride, const std::byte* from,
                        uint64_t from_stride, uint64_t rows, uint64_t bytes) {
  // The processor prefetches within a row, but does not know where the next one begins.
  constexpr uint64_t kAheadBytes = 4096;
  const uint64_t ahead = kAheadBytes / bytes;
  for (uint64_t row = 0; row < rows; ++row) {
    if (ahead > 0 && row + ahead < rows) {
      const auto* const later = from + (row + ahead) * from_stride;
      for (uint64_t at = 0; at < bytes; at += kCacheLineBytes) __builtin_prefetch(later + at);
    }
    const auto* const source = from + row * from_stride;
    if (bytes < kLeastStreamedBytes) {
      std::memcpy(to + row * to_stride, source, bytes);
    } else {
      stream_row(to + row * to_stride, source, bytes);
    }
  }
  finish_streaming();
}

}  // namespace awex
