#include "transfer/kernels/cuda_describe.hpp"

#include <algorithm>
#include <array>

#include "base/checked.hpp"
#include "model/digest.hpp"
#include "transfer/kernels/cuda_batch.hpp"

namespace awex::cuda {
namespace {

uint64_t address(const std::byte* data) { return reinterpret_cast<uintptr_t>(data); }

/// The widest access, 16 bytes at most, for addresses and distances that are all multiples of the
/// lowest bit that is set in `bits`.
uint32_t widest_access(uint64_t bits) {
  uint32_t width = 16;
  while (bits % width != 0) width /= 2;
  return width;
}

CopyPiece describe_copy(const StridedCopy& copy, uint64_t first_byte) {
  const bool gapless =
      copy.rows <= 1 || (copy.from_stride == copy.row_bytes && copy.to_stride == copy.row_bytes);
  const uint64_t row_bytes = gapless ? copy.bytes() : copy.row_bytes;
  const uint64_t strides = gapless ? 0 : copy.from_stride | copy.to_stride;
  CopyPiece piece;
  piece.from = copy.from;
  piece.to = copy.to;
  piece.from_stride = copy.from_stride;
  piece.to_stride = copy.to_stride;
  piece.width = widest_access(address(copy.from) | address(copy.to) | row_bytes | strides);
  piece.grid.units = copy.bytes() / piece.width;
  piece.grid.row_units = row_bytes / piece.width;
  piece.first_byte = first_byte;
  return piece;
}

/// Whether all units of rows of `cols` elements are whole, and lie where accesses of 16 bytes, or
/// of a whole unit if that is smaller, can reach them. `places` holds the lowest bits of all
/// addresses and distances.
bool has_whole_units(uint64_t cols, uint64_t places, uint64_t element_size) {
  return cols % kUnitElements == 0 &&
         places % std::min<uint64_t>(kUnitElements * element_size, 16) == 0;
}

/// Whether an element's row matters: to its scale alone.
bool depends_on_rows(const Conversion& conversion) { return conversion.to == DType::kF8E4M3; }

ConvertPiece describe_converting_copy(const StridedCopy& copy, uint64_t first_byte) {
  const auto& conversion = *copy.conversion;
  const uint64_t from_size = element_bytes(conversion.from);
  const uint64_t to_size = element_bytes(conversion.to);
  const uint64_t cols = copy.row_bytes / to_size;
  check_conversion(conversion, copy.rows, cols);
  const bool gapless = copy.from_stride == cols * from_size && copy.to_stride == copy.row_bytes;
  const bool as_one_row = copy.rows <= 1 || (gapless && !depends_on_rows(conversion));
  const uint64_t rows = as_one_row ? std::min<uint64_t>(copy.rows, 1) : copy.rows;
  ConvertPiece piece;
  piece.from.data = copy.from;
  piece.from.row_stride = rows > 1 ? copy.from_stride : 0;
  piece.from.cols = as_one_row ? cols * copy.rows : cols;
  piece.from.conversion = conversion;
  piece.to = copy.to;
  piece.to_stride = rows > 1 ? copy.to_stride : 0;
  piece.from.whole_units =
      has_whole_units(piece.from.cols, address(copy.from) | piece.from.row_stride, from_size) &&
      has_whole_units(piece.from.cols, address(copy.to) | piece.to_stride, to_size);
  piece.grid.row_units = piece.from.cols / kUnitElements + (piece.from.cols % kUnitElements != 0);
  piece.grid.units = rows * piece.grid.row_units;
  piece.first_byte = first_byte;
  return piece;
}

/// Whether a view's rows begin and end with a group of canonical elements, in memory where one or
/// two wide loads can fetch a group.
bool has_whole_groups(const DigestView& view) {
  const uint64_t load_bytes = std::min<uint64_t>(kDigestLanes * view.element_size, 16);
  const uint64_t row_bytes = view.rows > 1 ? view.row_stride * view.element_size : 0;
  const uint64_t row_step = view.rows > 1 ? view.canonical_cols : 0;
  return (address(view.data) | row_bytes) % load_bytes == 0 &&
         (view.first_index | view.cols | row_step) % kDigestLanes == 0;
}

/// Units of a view: groups of canonical elements.
UnitGrid groups_of(const DigestView& view, bool whole_groups) {
  UnitGrid grid;
  if (view.rows == 0 || view.cols == 0) return grid;
  // A row of n elements that begins anywhere in a group touches at most (n + 6) / 8 + 1 groups.
  grid.row_units =
      whole_groups ? view.cols / kDigestLanes : (view.cols + kDigestLanes - 2) / kDigestLanes + 1;
  grid.units = view.rows * grid.row_units;
  return grid;
}

void check_view(const DigestView& view, uint32_t slots) {
  const std::array known_sizes{1U, 2U, 4U};
  if (view.slot >= slots ||
      std::count(known_sizes.begin(), known_sizes.end(), view.element_size) == 0) {
    throw runtime_error(fmt::format("cannot digest elements of {} bytes into slot {} of {}",
                                    view.element_size, view.slot, slots));
  }
  if (view.conversion) check_conversion(*view.conversion, view.rows, view.cols);
}

DigestPiece describe_view(const DigestView& original) {
  const auto view = collapse(original);
  DigestPiece piece;
  piece.data = view.data;
  piece.row_stride = view.row_stride;
  piece.cols = view.cols;
  piece.first_index = view.first_index;
  piece.canonical_cols = view.canonical_cols;
  piece.key = view.key;
  piece.slot = view.slot;
  piece.element_size = view.element_size;
  piece.whole_groups = has_whole_groups(view);
  piece.grid = groups_of(view, piece.whole_groups);
  return piece;
}

ConvertedDigestPiece describe_converted_view(const DigestView& original) {
  const auto view = depends_on_rows(*original.conversion) ? original : collapse(original);
  ConvertedDigestPiece piece;
  piece.from.data = view.data;
  piece.from.row_stride = view.row_stride * view.element_size;
  piece.from.cols = view.cols;
  piece.from.conversion = *view.conversion;
  piece.from.whole_units = has_whole_groups(view);
  piece.first_index = view.first_index;
  piece.canonical_cols = view.canonical_cols;
  piece.key = view.key;
  piece.slot = view.slot;
  piece.grid = groups_of(view, piece.from.whole_units);
  return piece;
}

}  // namespace

std::vector<uint64_t> bytes_before(std::span<const StridedCopy> copies) {
  std::vector<uint64_t> sums;
  sums.reserve(copies.size());
  uint64_t sum = 0;
  for (const auto& copy : copies) {
    sums.push_back(sum);
    sum += copy.bytes();
  }
  return sums;
}

std::vector<CopyPiece> describe_copies(std::span<const StridedCopy> copies) {
  const auto first_bytes = bytes_before(copies);
  std::vector<CopyPiece> pieces;
  pieces.reserve(copies.size());
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copies[i].conversion) continue;
    pieces.push_back(describe_copy(copies[i], first_bytes[i]));
  }
  return pieces;
}

std::vector<ConvertPiece> describe_converting_copies(std::span<const StridedCopy> copies) {
  const auto first_bytes = bytes_before(copies);
  std::vector<ConvertPiece> pieces;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (!copies[i].conversion) continue;
    pieces.push_back(describe_converting_copy(copies[i], first_bytes[i]));
  }
  return pieces;
}

std::vector<DigestPiece> describe_views(std::span<const DigestView> views, uint32_t slots) {
  std::vector<DigestPiece> pieces;
  pieces.reserve(views.size());
  for (const auto& view : views) {
    if (view.conversion) continue;
    check_view(view, slots);
    pieces.push_back(describe_view(view));
  }
  return pieces;
}

std::vector<ConvertedDigestPiece> describe_converted_views(std::span<const DigestView> views,
                                                           uint32_t slots) {
  std::vector<ConvertedDigestPiece> pieces;
  for (const auto& view : views) {
    if (!view.conversion) continue;
    check_view(view, slots);
    pieces.push_back(describe_converted_view(view));
  }
  return pieces;
}

}  // namespace awex::cuda
