#include "plan/plan_copies.hpp"

#include <algorithm>
#include <utility>

namespace awex {
namespace {

MergedCopy copy_of(const Piece& piece) {
  const uint64_t rows = piece.box.rows.size();
  MergedCopy copy{piece.source,
                  piece.target,
                  rows,
                  piece.row_bytes,
                  piece.source_offset,
                  piece.source_stride,
                  piece.target_offset,
                  piece.target_stride,
                  piece.from,
                  piece.to,
                  piece.scales};
  const bool contiguous = rows > 1 && !copy.scales &&
                          copy.source_stride == copy.source_row_bytes() &&
                          copy.target_stride == copy.row_bytes;
  if (contiguous) copy.row_bytes *= std::exchange(copy.rows, 1);
  return copy;
}

/// Whether one copy could do for both, were they at the right places.
bool are_alike(const MergedCopy& a, const MergedCopy& b) {
  return a.source == b.source && a.target == b.target && a.from == b.from && a.to == b.to &&
         !a.scales && !b.scales;
}

/// Makes one row of two that touch on both sides.
bool lengthen(MergedCopy& copy, const MergedCopy& next) {
  const bool touches = are_alike(copy, next) && copy.rows == 1 && next.rows == 1 &&
                       copy.source_offset + copy.source_row_bytes() == next.source_offset &&
                       copy.target_offset + copy.row_bytes == next.target_offset;
  if (touches) copy.row_bytes += next.row_bytes;
  return touches;
}

/// Appends rows that keep the distance of the rows before them. One row alone has no distance yet.
bool append_rows(MergedCopy& copy, const MergedCopy& next) {
  const bool behind =
      next.source_offset > copy.source_offset && next.target_offset > copy.target_offset;
  if (!are_alike(copy, next) || !behind || copy.row_bytes != next.row_bytes) return false;
  const uint64_t source_distance = next.source_offset - copy.source_offset;
  const uint64_t target_distance = next.target_offset - copy.target_offset;
  const uint64_t source_stride = copy.rows > 1 ? copy.source_stride : source_distance;
  const uint64_t target_stride = copy.rows > 1 ? copy.target_stride : target_distance;
  const bool regular =
      source_distance == copy.rows * source_stride && target_distance == copy.rows * target_stride;
  const bool alike = next.rows == 1 ||
                     (next.source_stride == source_stride && next.target_stride == target_stride);
  if (!regular || !alike) return false;
  copy.rows += next.rows;
  copy.source_stride = source_stride;
  copy.target_stride = target_stride;
  return true;
}

/// Joins each copy to the one before it where `join` can.
std::vector<MergedCopy> join_neighbours(const std::vector<MergedCopy>& copies,
                                        bool (*join)(MergedCopy&, const MergedCopy&)) {
  std::vector<MergedCopy> joined;
  for (const auto& copy : copies) {
    if (joined.empty() || !join(joined.back(), copy)) joined.push_back(copy);
  }
  return joined;
}

}  // namespace

MergedCopy part_of(const MergedCopy& copy, uint64_t row, uint64_t rows, uint64_t byte,
                   uint64_t row_bytes) {
  MergedCopy part = copy;
  part.rows = rows;
  part.row_bytes = row_bytes;
  const uint64_t skipped = byte / element_bytes(copy.to);
  part.source_offset += row * copy.source_stride + skipped * element_bytes(copy.from);
  if (part.scales) part.scales = part.scales->moved(row, skipped);
  part.target_offset += row * copy.target_stride + byte;
  return part;
}

std::vector<MergedCopy> split(const MergedCopy& copy, uint64_t most) {
  std::vector<MergedCopy> parts;
  const uint64_t width = std::min(copy.row_bytes, most);
  const uint64_t rows_at_once = std::max<uint64_t>(1, most / copy.row_bytes);
  for (uint64_t row = 0; row < copy.rows; row += rows_at_once) {
    const uint64_t rows = std::min(rows_at_once, copy.rows - row);
    for (uint64_t byte = 0; byte < copy.row_bytes; byte += width) {
      parts.push_back(part_of(copy, row, rows, byte, std::min(width, copy.row_bytes - byte)));
    }
  }
  return parts;
}

std::vector<MergedCopy> merge_pieces(std::span<const Piece> pieces) {
  std::vector<MergedCopy> copies;
  for (const auto& piece : pieces) copies.push_back(copy_of(piece));
  // Long rows first: gate and up of an expert are one row before experts become rows of one copy.
  return join_neighbours(join_neighbours(copies, lengthen), append_rows);
}

}  // namespace awex
