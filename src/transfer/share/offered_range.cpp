#include "transfer/share/offered_range.hpp"

#include <algorithm>

#include "base/checked.hpp"
#include "base/error.hpp"

namespace awex {

const char* handle_kind_name(HandleKind kind) {
  switch (kind) {
    case HandleKind::kNone:
      return "nothing";
    case HandleKind::kVmmDescriptor:
      return "VMM descriptors";
    case HandleKind::kMemfd:
      return "memfds";
    case HandleKind::kLent:
      return "lent blocks";
  }
  return "unknown handles";
}

std::span<const int32_t> OfferedRange::numbers() const {
  const bool has_fds = kind == HandleKind::kVmmDescriptor || kind == HandleKind::kMemfd;
  return std::span(fds).first(has_fds ? count : 0);
}

bool OfferedRange::makes_sense() const {
  switch (kind) {
    case HandleKind::kNone:
      return bytes == 0 && count == 0;
    case HandleKind::kVmmDescriptor:
    case HandleKind::kMemfd:
      return bytes > 0 && chunk_bytes > 0 && count <= kMaxChunks &&
             count == ceil_div(bytes, chunk_bytes);
    case HandleKind::kLent:
      return bytes > 0 && count > 0 && count <= kMostLentBlocks && lent_number > 0;
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

OfferedRange offer(const LentMemory& lent) {
  OfferedRange offered;
  offered.kind = HandleKind::kLent;
  offered.bytes = lent.bytes();
  offered.count = narrow<uint32_t>(lent.lendings.size());
  offered.lent_number = lent.number;
  return offered;
}

}  // namespace awex
