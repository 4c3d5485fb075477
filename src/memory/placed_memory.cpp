#include "memory/placed_memory.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {
namespace {

constexpr uint64_t kAlignment = 8;

constexpr auto kRemedy =
    "an engine's memory must have every byte of its layout, in segments that end between elements";

uint64_t number_of(const std::byte* address) { return reinterpret_cast<uintptr_t>(address); }

/// The blocks of one block on one side.
void cut_block(const RowBlock& block, const PlacedRows& side, std::vector<RowBlock>& blocks) {
  const auto offset_of = [&](uint64_t row, uint64_t col) {
    return side.offset_bytes + row * side.stride_bytes + col * side.element_bytes;
  };
  const uint64_t row_bytes = block.cols * side.element_bytes;
  const uint64_t end = block.row + block.rows;
  for (uint64_t row = block.row; row < end;) {
    const uint64_t together = side.memory->together_from(offset_of(row, block.col));
    if (together >= row_bytes) {
      const uint64_t left = end - row;
      const uint64_t more =
          side.stride_bytes == 0 ? left - 1 : (together - row_bytes) / side.stride_bytes;
      const uint64_t rows = std::min(left, 1 + more);
      blocks.push_back({row, rows, block.col, block.cols});
      row += rows;
      continue;
    }
    for (uint64_t col = block.col; col < block.col + block.cols;) {
      const uint64_t at = offset_of(row, col);
      const uint64_t here = side.memory->together_from(at);
      const uint64_t left = block.col + block.cols - col;
      const uint64_t cols = std::min(left, here / side.element_bytes);
      if (cols < left && here % side.element_bytes != 0) {
        throw request_error(fmt::format("a segment of {} ends at byte {}, within an element of {} "
                                        "bytes",
                                        side.memory->name(), at + here, side.element_bytes),
                            kRemedy);
      }
      blocks.push_back({row, 1, col, cols});
      col += cols;
    }
    ++row;
  }
}

}  // namespace

PlacedMemory::PlacedMemory(std::byte* address, uint64_t bytes)
    : PlacedMemory("memory", {{0, address, bytes}}) {}

PlacedMemory::PlacedMemory(std::string name, std::vector<MemorySegment> segments)
    : name_(std::move(name)), segments_(std::move(segments)) {
  std::erase_if(segments_, [](const MemorySegment& segment) { return segment.bytes == 0; });
  std::sort(segments_.begin(), segments_.end(), [](const MemorySegment& a, const MemorySegment& b) {
    return a.offset_bytes < b.offset_bytes;
  });
  uint64_t end = 0;
  for (const auto& segment : segments_) {
    if (segment.offset_bytes < end) {
      throw request_error(
          fmt::format("two segments of {} both have its byte {}", name_, segment.offset_bytes),
          kRemedy);
    }
    if (number_of(segment.address) % kAlignment != segment.offset_bytes % kAlignment) {
      throw request_error(
          fmt::format("the segment of {} from byte {} on lies at {:#x}, which is "
                      "not aligned to {} bytes as it is in the whole",
                      name_, segment.offset_bytes, number_of(segment.address), kAlignment),
          "give tensors addresses that their elements can be loaded from");
    }
    end = segment.offset_bytes + segment.bytes;
  }
}

std::byte* PlacedMemory::at(uint64_t offset_bytes, uint64_t bytes) const {
  const auto& segment = segment_at(offset_bytes);
  const uint64_t before = offset_bytes - segment.offset_bytes;
  if (bytes <= segment.bytes - before) return segment.address + before;
  throw request_error(
      fmt::format("the {} of {} from byte {} on must lie together, and a segment ends {} behind it",
                  format_bytes(bytes), name_, offset_bytes, format_bytes(segment.bytes - before)),
      kRemedy);
}

uint64_t PlacedMemory::together_from(uint64_t offset_bytes) const {
  const auto& segment = segment_at(offset_bytes);
  return segment.offset_bytes + segment.bytes - offset_bytes;
}

/// Null where no segment has the byte.
const MemorySegment* PlacedMemory::find(uint64_t offset_bytes) const {
  const auto after = std::upper_bound(
      segments_.begin(), segments_.end(), offset_bytes,
      [](uint64_t offset, const MemorySegment& segment) { return offset < segment.offset_bytes; });
  if (after == segments_.begin()) return nullptr;
  const auto& segment = *std::prev(after);
  return offset_bytes - segment.offset_bytes < segment.bytes ? &segment : nullptr;
}

const MemorySegment& PlacedMemory::segment_at(uint64_t offset_bytes) const {
  if (const auto* segment = find(offset_bytes)) return *segment;
  throw request_error(fmt::format("byte {} of {} is in none of its {} segments", offset_bytes,
                                  name_.empty() ? "memory" : name_, segments_.size()),
                      kRemedy);
}

std::vector<RowBlock> cut_rows(uint64_t rows, uint64_t cols, std::span<const PlacedRows> sides) {
  if (rows == 0 || cols == 0) return {};
  std::vector<RowBlock> blocks{{0, rows, 0, cols}};
  for (const auto& side : sides) {
    std::vector<RowBlock> cut;
    for (const auto& block : blocks) cut_block(block, side, cut);
    blocks = std::move(cut);
  }
  return blocks;
}

std::byte* address_of(const RowBlock& block, const PlacedRows& side) {
  return side.memory->at(
      side.offset_bytes + block.row * side.stride_bytes + block.col * side.element_bytes,
      (block.rows - 1) * side.stride_bytes + block.cols * side.element_bytes);
}

}  // namespace awex
