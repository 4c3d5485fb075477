#include "transfer/share/offered_range.hpp"

#include <algorithm>
#include <optional>

#include "base/checked.hpp"
#include "base/error.hpp"

namespace awex {
namespace {

/// Nothing where a part is empty or all are more than there can be.
std::optional<uint64_t> bytes_of(std::span<const LegacyHandle> parts) {
  uint64_t bytes = 0;
  for (const auto& part : parts) {
    if (part.bytes == 0 || part.bytes > ~uint64_t{0} - bytes) return std::nullopt;
    bytes += part.bytes;
  }
  return bytes;
}

}  // namespace

const char* handle_kind_name(HandleKind kind) {
  switch (kind) {
    case HandleKind::kNone:
      return "nothing";
    case HandleKind::kVmmDescriptor:
      return "VMM descriptors";
    case HandleKind::kMemfd:
      return "memfds";
    case HandleKind::kLegacyIpc:
      return "legacy IPC handles";
  }
  return "unknown handles";
}

std::span<const int32_t> OfferedRange::numbers() const {
  const bool has_fds = kind == HandleKind::kVmmDescriptor || kind == HandleKind::kMemfd;
  return std::span(fds).first(has_fds ? count : 0);
}

std::span<const LegacyHandle> OfferedRange::parts() const {
  return std::span(legacy).first(kind == HandleKind::kLegacyIpc ? count : 0);
}

bool OfferedRange::makes_sense() const {
  switch (kind) {
    case HandleKind::kNone:
      return bytes == 0 && count == 0;
    case HandleKind::kVmmDescriptor:
    case HandleKind::kMemfd:
      return bytes > 0 && chunk_bytes > 0 && count <= kMaxChunks &&
             count == ceil_div(bytes, chunk_bytes);
    case HandleKind::kLegacyIpc:
      return bytes > 0 && count <= kMostLegacyHandles && bytes_of(parts()) == bytes;
  }
  return false;  // a kind of another version of the program
}

OfferedRange offer(OwnedChunks& owned, BackendKind backend) {
  const auto fds = owned.export_fds();
  if (fds.size() > kMaxChunks) {
    throw runtime_error(
        fmt::format("cannot offer {} chunks: an offer holds {}", fds.size(), kMaxChunks));
  }
  OfferedRange offered;
  offered.kind = handle_kind_of(backend);
  offered.bytes = owned.chunking().bytes;
  offered.chunk_bytes = owned.chunking().chunk_bytes;
  offered.count = static_cast<uint32_t>(fds.size());
  std::copy(fds.begin(), fds.end(), offered.fds.begin());
  return offered;
}

}  // namespace awex
