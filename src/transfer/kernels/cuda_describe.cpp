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

CopyDescriptor describe_copy(const StridedCopy& copy, uint64_t first_byte) {
  const bool gapless =
      copy.rows <= 1 || (copy.from_stride == copy.row_bytes && copy.to_stride == copy.row_bytes);
  const uint64_t row_bytes = gapless ? copy.bytes() : copy.row_bytes;
  const uint64_t strides = gapless ? 0 : copy.from_stride | copy.to_stride;
  CopyDescriptor descriptor;
  descriptor.from = copy.from;
  descriptor.to = copy.to;
  descriptor.from_stride = copy.from_stride;
  descriptor.to_stride = copy.to_stride;
  descriptor.width = widest_access(address(copy.from) | address(copy.to) | row_bytes | strides);
  descriptor.grid.units = copy.bytes() / descriptor.width;
  descriptor.grid.row_units = row_bytes / descriptor.width;
  descriptor.first_byte = first_byte;
  return descriptor;
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

ConvertDescriptor describe_converting_copy(const StridedCopy& copy, uint64_t first_byte) {
  const auto& conversion = *copy.conversion;
  const uint64_t from_size = element_bytes(conversion.from);
  const uint64_t to_size = element_bytes(conversion.to);
  const uint64_t cols = copy.row_bytes / to_size;
  check_conversion(conversion, copy.rows, cols);
  const bool gapless = copy.from_stride == cols * from_size && copy.to_stride == copy.row_bytes;
  const bool as_one_row = copy.rows <= 1 || (gapless && !depends_on_rows(conversion));
  const uint64_t rows = as_one_row ? std::min<uint64_t>(copy.rows, 1) : copy.rows;
  ConvertDescriptor descriptor;
  descriptor.from.data = copy.from;
  descriptor.from.row_stride = rows > 1 ? copy.from_stride : 0;
  descriptor.from.cols = as_one_row ? cols * copy.rows : cols;
  descriptor.from.conversion = conversion;
  descriptor.to = copy.to;
  descriptor.to_stride = rows > 1 ? copy.to_stride : 0;
  descriptor.from.whole_units =
      has_whole_units(descriptor.from.cols, address(copy.from) | descriptor.from.row_stride,
                      from_size) &&
      has_whole_units(descriptor.from.cols, address(copy.to) | descriptor.to_stride, to_size);
  descriptor.grid.row_units =
      descriptor.from.cols / kUnitElements + (descriptor.from.cols % kUnitElements != 0);
  descriptor.grid.units = rows * descriptor.grid.row_units;
  descriptor.first_byte = first_byte;
  return descriptor;
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

void check_view(const DigestView& view, uint32_t sum_count) {
  const std::array known_sizes{1U, 2U, 4U};
  if (view.sum >= sum_count ||
      std::count(known_sizes.begin(), known_sizes.end(), view.element_size) == 0) {
    throw runtime_error(fmt::format("cannot digest elements of {} bytes into sum {} of {}",
                                    view.element_size, view.sum, sum_count));
  }
  if (view.conversion) check_conversion(*view.conversion, view.rows, view.cols);
}

DigestDescriptor describe_view(const DigestView& original) {
  const auto view = collapse(original);
  DigestDescriptor descriptor;
  descriptor.data = view.data;
  descriptor.row_stride = view.row_stride;
  descriptor.cols = view.cols;
  descriptor.first_index = view.first_index;
  descriptor.canonical_cols = view.canonical_cols;
  descriptor.key = view.key;
  descriptor.sum = view.sum;
  descriptor.element_size = view.element_size;
  descriptor.whole_groups = has_whole_groups(view);
  descriptor.grid = groups_of(view, descriptor.whole_groups);
  return descriptor;
}

ConvertedDigestDescriptor describe_converted_view(const DigestView& original) {
  const auto view = depends_on_rows(*original.conversion) ? original : collapse(original);
  ConvertedDigestDescriptor descriptor;
  descriptor.from.data = view.data;
  descriptor.from.row_stride = view.row_stride * view.element_size;
  descriptor.from.cols = view.cols;
  descriptor.from.conversion = *view.conversion;
  descriptor.from.whole_units = has_whole_groups(view);
  descriptor.first_index = view.first_index;
  descriptor.canonical_cols = view.canonical_cols;
  descriptor.key = view.key;
  descriptor.sum = view.sum;
  descriptor.grid = groups_of(view, descriptor.from.whole_units);
  return descriptor;
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

std::vector<CopyDescriptor> describe_copies(std::span<const StridedCopy> copies) {
  const auto first_bytes = bytes_before(copies);
  std::vector<CopyDescriptor> descriptors;
  descriptors.reserve(copies.size());
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copies[i].conversion) continue;
    descriptors.push_back(describe_copy(copies[i], first_bytes[i]));
  }
  return descriptors;
}

std::vector<ConvertDescriptor> describe_converting_copies(std::span<const StridedCopy> copies) {
  const auto first_bytes = bytes_before(copies);
  std::vector<ConvertDescriptor> descriptors;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (!copies[i].conversion) continue;
    descriptors.push_back(describe_converting_copy(copies[i], first_bytes[i]));
  }
  return descriptors;
}

std::vector<DigestDescriptor> describe_views(std::span<const DigestView> views,
                                             uint32_t sum_count) {
  std::vector<DigestDescriptor> descriptors;
  descriptors.reserve(views.size());
  for (const auto& view : views) {
    if (view.conversion) continue;
    check_view(view, sum_count);
    descriptors.push_back(describe_view(view));
  }
  return descriptors;
}

std::vector<ConvertedDigestDescriptor> describe_converted_views(std::span<const DigestView> views,
                                                                uint32_t sum_count) {
  std::vector<ConvertedDigestDescriptor> descriptors;
  for (const auto& view : views) {
    if (!view.conversion) continue;
    check_view(view, sum_count);
    descriptors.push_back(describe_converted_view(view));
  }
  return descriptors;
}

}  // namespace awex::cuda
