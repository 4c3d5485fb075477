#include "transfer/move/strided_copies.hpp"

#include <optional>

#include "transfer/kernels/scale_grid.hpp"

namespace awex {
namespace {

std::optional<Conversion> conversion_of(const MergedCopy& copy, const std::byte* trainer) {
  if (copy.from == copy.to) return std::nullopt;
  Conversion conversion{copy.from, copy.to, {}};
  if (copy.scales) conversion.grid = scale_grid(*copy.scales, trainer);
  return conversion;
}

/// A copy from the trainer's region to rows at `to`.
StridedCopy leaving_copy(const MergedCopy& copy, const std::byte* trainer, std::byte* to,
                         uint64_t to_stride) {
  return {.from = trainer + copy.source_offset,
          .to = to,
          .rows = copy.rows,
          .row_bytes = copy.row_bytes,
          .from_stride = copy.source_stride,
          .to_stride = to_stride,
          .conversion = conversion_of(copy, trainer)};
}

}  // namespace

StridedCopy straight_copy(const MergedCopy& copy, const std::byte* trainer, std::byte* own) {
  return leaving_copy(copy, trainer, own + copy.target_offset, copy.target_stride);
}

StridedCopy packing_copy(const MergedCopy& copy, const std::byte* trainer, std::byte* packed) {
  return leaving_copy(copy, trainer, packed, copy.row_bytes);
}

StridedCopy unpacking_copy(const MergedCopy& copy, const std::byte* packed, std::byte* own) {
  return {.from = packed,
          .to = own + copy.target_offset,
          .rows = copy.rows,
          .row_bytes = copy.row_bytes,
          .from_stride = copy.row_bytes,
          .to_stride = copy.target_stride};
}

}  // namespace awex
