#pragma once

#include <cstdint>
#include <type_traits>

#include "model/convert.hpp"
#include "model/dtype.hpp"

/// What happens to elements whose dtype changes on the way, in terms that the host and the cuda
/// kernels share: both give the same bits.

namespace awex {

/// The scales of square blocks of a matrix, seen from the first element of a box of it. Blocks are
/// counted from the matrix's first element, so a box may begin and end inside one.
struct ScaleGrid {
  float* scales = nullptr;    ///< Of the block that holds the box's first element; of the device.
  uint64_t row_stride = 0;    ///< Scales between rows of blocks.
  uint32_t block = 0;         ///< Rows, and columns, of a block.
  uint32_t row_in_block = 0;  ///< Where the box's first element lies in its block.
  uint32_t col_in_block = 0;
};

/// A change of dtype on the way: from BF16, F16 or F32 to another of these, or to F8_E4M3. Elements
/// that become F8_E4M3 are divided by their block's scale first (an fp32 division).
struct Conversion {
  DType from = DType::kBf16;
  DType to = DType::kBf16;
  ScaleGrid grid;  ///< Where `to` is kF8E4M3.
};

/// One dimension of a box, cut at the bounds of a grid's blocks. Parts are half-open and counted
/// from the box's first element.
struct BlockCuts {
  uint64_t extent = 0;    ///< Of the box.
  uint32_t block = 0;     ///< Of the grid.
  uint32_t in_block = 0;  ///< Where the box begins in its first block.

  [[nodiscard]] constexpr uint64_t count() const {
    return extent == 0 ? 0 : (in_block + extent - 1) / block + 1;
  }
  [[nodiscard]] constexpr uint64_t begin(uint64_t part) const {
    return part == 0 ? 0 : part * block - in_block;
  }
  [[nodiscard]] constexpr uint64_t end(uint64_t part) const {
    const uint64_t cut = (part + 1) * block - in_block;
    return cut < extent ? cut : extent;
  }
};

/// The scale of an element and how many elements of its row, itself counted, share it.
struct ScaleRun {
  const float* scale = nullptr;
  uint32_t elements = 0;
};

/// Row and column are of the box. In 32 bits, which cuda divides faster: check_conversion has seen
/// to it that they fit.
[[nodiscard]] constexpr ScaleRun scale_run(const ScaleGrid& grid, uint64_t row, uint64_t col) {
  const uint32_t row_of_grid = static_cast<uint32_t>(row) + grid.row_in_block;
  const uint32_t col_of_grid = static_cast<uint32_t>(col) + grid.col_in_block;
  const uint32_t block_row = row_of_grid / grid.block;
  const uint32_t block_col = col_of_grid / grid.block;
  return {grid.scales + block_row * grid.row_stride + block_col,
          (block_col + 1) * grid.block - col_of_grid};
}

template <class To>
inline constexpr bool kHasScales = std::is_same_v<To, F8E4M3Element>;

/// One element's bits in the dtype To; `scale` counts where To has scales.
template <class From, class To>
[[nodiscard]] constexpr typename To::Bits converted(typename From::Bits bits, float scale) {
  if constexpr (kHasScales<To>) return To::bits(From::value(bits) / scale);
  return To::bits(From::value(bits));
}

/// Calls work(an element type of model/convert.hpp) for a dtype that a conversion can begin with.
template <class Work>
constexpr auto with_source(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kBf16:
      return work(Bf16Element());
    case DType::kF16:
      return work(F16Element());
    case DType::kF32:
      return work(F32Element());
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  __builtin_unreachable();
}

/// Calls work(source, target) with the element types of a conversion.
template <class Work>
constexpr auto with_elements(const Conversion& conversion, const Work& work) {
  return with_source(conversion.from, [&](auto source) {
    if (conversion.to == DType::kF8E4M3) return work(source, F8E4M3Element());
    return with_source(conversion.to, [&](auto target) { return work(source, target); });
  });
}

/// Throws Error(kRuntime) for a conversion that no kernel does, and for a grid without blocks or
/// whose 32-bit places a box of `rows` x `cols` elements would leave. The kernels' preparation
/// calls it.
void check_conversion(const Conversion& conversion, uint64_t rows, uint64_t cols);

/// The same for a box whose scales are searched.
void check_scales_source(DType dtype, const ScaleGrid& grid, uint64_t rows, uint64_t cols);

}  // namespace awex
