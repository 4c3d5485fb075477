#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "memory/chunking.hpp"
#include "memory/device.hpp"

namespace awex {

/// By what another process maps memory.
enum class HandleKind : uint8_t {
  kNone,           ///< Nothing is offered.
  kVmmDescriptor,  ///< Descriptors of chunks of CUDA virtual memory management.
  kMemfd,          ///< Descriptors of files in memory, a chunk each.
  kLegacyIpc,      ///< cudaIpcMemHandle_t of what cudaMalloc gave, and the places in it.
};

/// "VMM descriptors", "memfds" or "legacy IPC handles".
[[nodiscard]] const char* handle_kind_name(HandleKind kind);

/// The kind that a backend's own ranges are offered by, which is the one that it maps.
[[nodiscard]] constexpr HandleKind handle_kind_of(BackendKind backend) {
  return backend == BackendKind::kCuda ? HandleKind::kVmmDescriptor : HandleKind::kMemfd;
}

/// A part of an allocation that another process opens by its handle.
struct LegacyHandle {
  std::array<uint8_t, 64> handle{};  ///< cudaIpcMemHandle_t.
  uint64_t offset_bytes = 0;         ///< Of the part, from the allocation's base.
  uint64_t bytes = 0;
};

inline constexpr uint64_t kMostLegacyHandles = 32;

/// A range of device memory that a process offers others: plain data of a fixed size, to be swapped
/// between all ranks, with as many handles as its kind and its size need. All zero where nothing is
/// offered.
struct OfferedRange {
  HandleKind kind = HandleKind::kNone;
  uint32_t count = 0;        ///< Handles: chunks, or parts of allocations.
  uint64_t bytes = 0;        ///< Of the whole range.
  uint64_t chunk_bytes = 0;  ///< Of every chunk but the last, where descriptors are offered.
  std::array<int32_t, kMaxChunks> fds{};  ///< Descriptor numbers in the offering process.
  std::array<LegacyHandle, kMostLegacyHandles> legacy{};  ///< The range, part after part.

  /// The descriptors that are offered; none of another kind.
  [[nodiscard]] std::span<const int32_t> numbers() const;
  /// The parts that are offered; none of another kind.
  [[nodiscard]] std::span<const LegacyHandle> parts() const;
  /// Whether the handles are as many as the kind allows and make up the range.
  [[nodiscard]] bool makes_sense() const;
};
static_assert(std::is_trivially_copyable_v<OfferedRange>);

/// The offer of an owner on a backend, all of whose chunks are taken; its descriptors stay the
/// owner's. Throws what OwnedChunks::export_fds throws.
[[nodiscard]] OfferedRange offer(OwnedChunks& owned, BackendKind backend);

}  // namespace awex
