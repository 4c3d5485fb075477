#include "transfer/move/strided_copies.hpp"

#include <array>
#include <optional>

#include "transfer/kernels/scale_grid.hpp"

namespace awex {
namespace {

/// What a copy is cut between: elements, of which its rows consist where it converts any; bytes of
/// rows that are no whole elements.
uint64_t unit_of(const MergedCopy& copy) {
  const uint64_t element = element_bytes(copy.to);
  return copy.row_bytes % element == 0 ? element : 1;
}

PlacedRows source_rows(const MergedCopy& copy, const PlacedMemory& trainer) {
  const uint64_t unit = copy.from == copy.to ? unit_of(copy) : element_bytes(copy.from);
  return {&trainer, copy.source_offset, copy.source_stride, unit};
}

PlacedRows target_rows(const MergedCopy& copy, const PlacedMemory& own) {
  return {&own, copy.target_offset, copy.target_stride, unit_of(copy)};
}

MergedCopy part_at(const MergedCopy& copy, const RowBlock& block, uint64_t unit) {
  const uint64_t byte = block.col * unit;
  auto part = part_of(copy, block.row, block.rows, byte, block.cols * unit);
  if (copy.from == copy.to) {
    part.source_offset = copy.source_offset + block.row * copy.source_stride + byte;
  }
  return part;
}

std::vector<MergedCopy> cut(const MergedCopy& copy, std::span<const PlacedRows> sides) {
  const uint64_t unit = unit_of(copy);
  std::vector<MergedCopy> parts;
  for (const auto& block : cut_rows(copy.rows, copy.row_bytes / unit, sides)) {
    parts.push_back(part_at(copy, block, unit));
  }
  return parts;
}

/// From the first byte of the first row to the last one of the last.
uint64_t extent(uint64_t rows, uint64_t stride, uint64_t row_bytes) {
  return (rows - 1) * stride + row_bytes;
}

std::byte* source_of(const MergedCopy& copy, const PlacedMemory& trainer) {
  return trainer.at(copy.source_offset,
                    extent(copy.rows, copy.source_stride, copy.source_row_bytes()));
}

std::byte* target_of(const MergedCopy& copy, const PlacedMemory& own) {
  return own.at(copy.target_offset, extent(copy.rows, copy.target_stride, copy.row_bytes));
}

std::optional<Conversion> conversion_of(const MergedCopy& copy, const PlacedMemory& trainer) {
  if (copy.from == copy.to) return std::nullopt;
  Conversion conversion{copy.from, copy.to, {}};
  if (copy.scales) {
    const uint64_t cols = copy.row_bytes / element_bytes(copy.to);
    conversion.grid = scale_grid(*copy.scales, copy.rows, cols, trainer);
  }
  return conversion;
}

/// A copy from the trainer's memory to rows at `to`.
StridedCopy leaving_copy(const MergedCopy& copy, const PlacedMemory& trainer, std::byte* to,
                         uint64_t to_stride) {
  return {.from = source_of(copy, trainer),
          .to = to,
          .rows = copy.rows,
          .row_bytes = copy.row_bytes,
          .from_stride = copy.source_stride,
          .to_stride = to_stride,
          .conversion = conversion_of(copy, trainer)};
}

}  // namespace

std::vector<MergedCopy> cut_at_source(const MergedCopy& copy, const PlacedMemory& trainer) {
  const auto side = source_rows(copy, trainer);
  return cut(copy, {&side, 1});
}

std::vector<MergedCopy> cut_at_target(const MergedCopy& copy, const PlacedMemory& own) {
  const auto side = target_rows(copy, own);
  return cut(copy, {&side, 1});
}

std::vector<MergedCopy> cut_at_both(const MergedCopy& copy, const PlacedMemory& trainer,
                                    const PlacedMemory& own) {
  return cut(copy, std::array{source_rows(copy, trainer), target_rows(copy, own)});
}

StridedCopy straight_copy(const MergedCopy& copy, const PlacedMemory& trainer,
                          const PlacedMemory& own) {
  return leaving_copy(copy, trainer, target_of(copy, own), copy.target_stride);
}

StridedCopy packing_copy(const MergedCopy& copy, const PlacedMemory& trainer, std::byte* packed) {
  return leaving_copy(copy, trainer, packed, copy.row_bytes);
}

StridedCopy unpacking_copy(const MergedCopy& copy, const std::byte* packed,
                           const PlacedMemory& own) {
  return {.from = packed,
          .to = target_of(copy, own),
          .rows = copy.rows,
          .row_bytes = copy.row_bytes,
          .from_stride = copy.row_bytes,
          .to_stride = copy.target_stride};
}

}  // namespace awex
