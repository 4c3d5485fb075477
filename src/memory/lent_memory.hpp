#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "memory/placed_memory.hpp"

namespace awex {

class Device;

/// A cudaIpcMemHandle_t.
using IpcHandle = std::array<uint8_t, 64>;

inline constexpr uint64_t kMostLentBlocks = 1 << 16;

/// A block of memory that a process has taken for itself and lends to others, and how they open it:
/// on cuda what one cudaMalloc has given, by a legacy IPC handle, or what one handle of virtual
/// memory management stands for, by a descriptor; on host a shared mapping of a file, by a
/// descriptor. Plain data.
struct LentBlock {
  uint64_t address = 0;  ///< Of its first byte, in the lender's process.
  uint64_t bytes = 0;
  uint64_t offset_bytes = 0;  ///< Of that byte in what the descriptor or handle opens.
  bool has_fd = false;        ///< A descriptor opens it, else the handle does.
  IpcHandle ipc{};

  constexpr bool operator==(const LentBlock&) const = default;
};

/// A block with its descriptor, if it has one.
struct Lending {
  LentBlock block;
  UniqueFd fd;
};

/// All that a process lends of one kind of tensors: the blocks, and which bytes of a layout lie
/// where in them.
struct LentMemory {
  uint64_t number = 0;  ///< Another one with every change, from 1 on.
  bool stays = true;    ///< Its owner keeps it where it is, so that others may keep it open.
  std::vector<Lending> lendings;
  std::vector<MemorySegment> segments;  ///< Of a layout, at the lender's addresses.

  [[nodiscard]] uint64_t bytes() const;
};

/// A block of another process's memory that is open here, for reading. Closed on destruction, when
/// no device work on it may be in flight.
class OpenedBlock {
 public:
  OpenedBlock() = default;
  OpenedBlock(const OpenedBlock&) = delete;
  OpenedBlock& operator=(const OpenedBlock&) = delete;
  OpenedBlock(OpenedBlock&&) = delete;
  OpenedBlock& operator=(OpenedBlock&&) = delete;
  virtual ~OpenedBlock() = default;

  [[nodiscard]] virtual const std::byte* data() const = 0;  ///< Of the block's first byte.
};

/// What another process lends, open here. The bytes are the lender's: they are there while it lives
/// and does not free them.
class BorrowedMemory {
 public:
  /// Opens all blocks; descriptors stay the lender's. `name` is for messages. Throws
  /// Error(kRuntime), and a request error where the segments lie in none of the blocks.
  BorrowedMemory(Device& device, const std::string& name, const LentMemory& lent);

  /// Where the layout's bytes lie here.
  [[nodiscard]] const PlacedMemory& placed() const { return placed_; }
  [[nodiscard]] uint64_t number() const { return number_; }
  [[nodiscard]] bool stays() const { return stays_; }

 private:
  uint64_t number_;
  bool stays_;
  std::vector<std::unique_ptr<OpenedBlock>> blocks_;
  PlacedMemory placed_;
};

}  // namespace awex
