#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "memory/chunking.hpp"
#include "memory/device.hpp"
#include "memory/lent_memory.hpp"

namespace awex {

/// By what another process maps memory.
enum class HandleKind : uint8_t {
  kNone,           ///< Nothing is offered.
  kVmmDescriptor,  ///< Descriptors of chunks of CUDA virtual memory management.
  kMemfd,          ///< Descriptors of files in memory, a chunk each.
  kLent,  ///< Blocks of an engine's own memory, which its partner alone learns (lent_exchange.hpp).
};

/// "VMM descriptors", "memfds" or "lent blocks".
[[nodiscard]] const char* handle_kind_name(HandleKind kind);

/// The kind that a backend's own ranges are offered by, which is the one that it maps.
[[nodiscard]] constexpr HandleKind handle_kind_of(BackendKind backend) {
  return backend == BackendKind::kCuda ? HandleKind::kVmmDescriptor : HandleKind::kMemfd;
}

/// A range of device memory that a process offers others: plain data of a fixed size, to be swapped
/// between all ranks, with as many descriptors as its size needs. All zero where nothing is
/// offered.
struct OfferedRange {
  HandleKind kind = HandleKind::kNone;
  uint32_t count = 0;                     ///< Chunks, or blocks that are lent.
  uint64_t bytes = 0;                     ///< Of the whole range, or of all blocks.
  uint64_t chunk_bytes = 0;               ///< Of every chunk but the last; 0 for blocks.
  uint64_t lent_number = 0;               ///< LentMemory::number; 0 for chunks.
  std::array<int32_t, kMaxChunks> fds{};  ///< Descriptor numbers in the offering process.

  /// The descriptors that are offered; none of blocks.
  [[nodiscard]] std::span<const int32_t> numbers() const;
  /// Whether the handles are as many as the kind allows and make up the range.
  [[nodiscard]] bool makes_sense() const;
};
static_assert(std::is_trivially_copyable_v<OfferedRange>);

/// The offer of an owner on a backend, all of whose chunks are taken; its descriptors stay the
/// owner's. Throws what OwnedChunks::export_fds throws.
[[nodiscard]] OfferedRange offer(OwnedChunks& owned, BackendKind backend);
/// The offer of what an engine lends.
[[nodiscard]] OfferedRange offer(const LentMemory& lent);

}  // namespace awex
