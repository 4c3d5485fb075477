#include "transfer/share/offered_range.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {

std::span<const int32_t> OfferedRange::numbers() const { return std::span(fds).first(chunk_count); }

OfferedRange offer(DeviceRange& range) {
  const auto fds = range.export_fds();
  if (fds.size() > kMaxChunks) {
    throw runtime_error(
        fmt::format("cannot offer {} chunks: an offer holds {}", fds.size(), kMaxChunks));
  }
  OfferedRange offered;
  offered.bytes = range.bytes();
  offered.chunk_bytes = range.chunk_bytes();
  offered.chunk_count = static_cast<uint32_t>(fds.size());
  std::copy(fds.begin(), fds.end(), offered.fds.begin());
  return offered;
}

}  // namespace awex
