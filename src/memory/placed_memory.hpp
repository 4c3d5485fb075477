#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace awex {

/// A contiguous part of an engine's memory: which bytes of the whole lie where.
struct MemorySegment {
  uint64_t offset_bytes = 0;     ///< Of its first byte in the whole.
  std::byte* address = nullptr;  ///< Of the device.
  uint64_t bytes = 0;

  constexpr bool operator==(const MemorySegment&) const = default;
};

/// Where the bytes of a role's memory lie. Layouts and plans count bytes in one piece, from 0 on;
/// an engine's memory may be one region or many pieces. What turns such an offset into an address
/// asks here. Owns nothing; the addresses need not be backed.
class PlacedMemory {
 public:
  /// Memory without a byte, as a rank has of the role that it does not play.
  PlacedMemory() = default;
  /// In one piece from offset 0 on.
  PlacedMemory(std::byte* address, uint64_t bytes);
  /// In any order; what lies between two of them is nowhere. `name` is for messages. Throws a
  /// request error when segments overlap in the whole, or when an address is not aligned as its
  /// offset is, to 8 bytes: elements would then not be.
  PlacedMemory(std::string name, std::vector<MemorySegment> segments);

  [[nodiscard]] bool empty() const { return segments_.empty(); }
  [[nodiscard]] const std::string& name() const { return name_; }
  /// By offset.
  [[nodiscard]] std::span<const MemorySegment> segments() const { return segments_; }

  /// The address of `bytes` (> 0) bytes that lie in one segment. Throws a request error that names
  /// the memory and the bytes where they do not.
  [[nodiscard]] std::byte* at(uint64_t offset_bytes, uint64_t bytes) const;
  /// How many bytes from an offset on lie together. Throws as `at` where there is none.
  [[nodiscard]] uint64_t together_from(uint64_t offset_bytes) const;

 private:
  [[nodiscard]] const MemorySegment* find(uint64_t offset_bytes) const;
  [[nodiscard]] const MemorySegment& segment_at(uint64_t offset_bytes) const;

  std::string name_;
  std::vector<MemorySegment> segments_;
};

/// Rows of elements in placed memory: as many, and as many columns, as what they are cut with has.
struct PlacedRows {
  const PlacedMemory* memory = nullptr;
  uint64_t offset_bytes = 0;  ///< Of the first element.
  uint64_t stride_bytes = 0;  ///< From row to row; no matter for a single one.
  uint64_t element_bytes = 0;
};

/// A part of such rows.
struct RowBlock {
  uint64_t row = 0;
  uint64_t rows = 0;
  uint64_t col = 0;
  uint64_t cols = 0;

  constexpr bool operator==(const RowBlock&) const = default;
};

/// Cuts `rows` rows of `cols` elements into the fewest blocks, in order of rows, whose rows lie at
/// regular distances on every side, and each block of every side in one segment: whole rows where
/// segments end between rows, and parts of a row that crosses an end. One block where each side is
/// one segment. Throws a request error for bytes that are nowhere, and where a segment ends within
/// an element.
[[nodiscard]] std::vector<RowBlock> cut_rows(uint64_t rows, uint64_t cols,
                                             std::span<const PlacedRows> sides);

/// The address of a block's first element on a side, in one of whose segments the block lies.
/// Throws as PlacedMemory::at.
[[nodiscard]] std::byte* address_of(const RowBlock& block, const PlacedRows& side);

}  // namespace awex
