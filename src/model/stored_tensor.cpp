#include "model/stored_tensor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.hpp"
#include "model/convert.hpp"

namespace awex {
namespace {

constexpr uint64_t kElemsAtOnce = 1U << 18;  ///< So that slow storage is asked seldom.

template <class Element>
void decode(std::span<const std::byte> stored, std::span<float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    typename Element::Bits bits = 0;
    std::memcpy(&bits, stored.data() + i * sizeof(bits), sizeof(bits));
    values[i] = Element::value(bits);
  }
}

/// Returns whether a number became infinite, as it is too large for the element type.
template <class Element>
bool encode(std::span<const float> values, std::span<std::byte> out) {
  bool overflows = false;
  for (size_t i = 0; i < values.size(); ++i) {
    const typename Element::Bits bits = Element::bits(values[i]);
    overflows |= std::isfinite(values[i]) && std::isinf(Element::value(bits));
    std::memcpy(out.data() + i * sizeof(bits), &bits, sizeof(bits));
  }
  return overflows;
}

void decode_as(DType dtype, std::span<const std::byte> stored, std::span<float> values) {
  switch (dtype) {
    case DType::kBf16:
      return decode<Bf16Element>(stored, values);
    case DType::kF16:
      return decode<F16Element>(stored, values);
    case DType::kF32:
      return decode<F32Element>(stored, values);
    case DType::kF8E4M3:
      return decode<F8E4M3Element>(stored, values);
    case DType::kF8E5M2:
      break;
  }
  throw runtime_error(fmt::format("cannot read {} weights", dtype_name(dtype)));
}

/// Reads elements as floats.
void read_floats(const InputFile& file, uint64_t offset_bytes, DType dtype,
                 std::span<float> values) {
  std::vector<std::byte> stored(values.size() * element_bytes(dtype));
  file.read(offset_bytes, stored);
  decode_as(dtype, stored, values);
}

bool write_floats(DType dtype, std::span<const float> values, std::span<std::byte> out) {
  switch (dtype) {
    case DType::kBf16:
      return encode<Bf16Element>(values, out);
    case DType::kF16:
      return encode<F16Element>(values, out);
    case DType::kF32:
      return encode<F32Element>(values, out);
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  throw runtime_error(fmt::format("cannot load weights as {}", dtype_name(dtype)));
}

/// Weights that became infinite would pass every proof: both sides hold the same.
[[noreturn]] void refuse_overflow(const StoredTensor& stored, const TensorInfo& info,
                                  uint64_t first, std::span<const float> values,
                                  std::span<const std::byte> out) {
  std::vector<float> written(values.size());
  decode_as(info.dtype, out, written);
  size_t at = 0;
  while (!std::isfinite(values[at]) || !std::isinf(written[at])) ++at;
  throw request_error(
      fmt::format("{}: tensor \"{}\" holds {:g} (row {}), which is too large for {}, the dtype of "
                  "its config.json",
                  stored.file->name(), info.name, values[at], (first + at) / info.cols,
                  dtype_name(info.dtype)),
      "set \"torch_dtype\" in config.json to \"bfloat16\" or \"float32\"")
      .about_tensor(info.name);
}

/// The scales of all blocks that some consecutive elements of a matrix lie in.
struct Factors {
  uint64_t top = 0;  ///< The first row of blocks.
  std::vector<float> values;
};

uint64_t block_row(const StoredScales& scales, uint64_t cols, uint64_t element) {
  return (scales.first_row + element / cols) / scales.block_rows;
}

/// How many scales are read for some consecutive elements.
uint64_t factors_for(const StoredScales& scales, uint64_t cols, uint64_t first, uint64_t count) {
  const uint64_t rows =
      block_row(scales, cols, first + count - 1) - block_row(scales, cols, first) + 1;
  return rows * scales.cols;
}

Factors read_factors(const StoredScales& scales, uint64_t cols, uint64_t first, uint64_t count) {
  Factors factors;
  factors.top = block_row(scales, cols, first);
  factors.values.resize(factors_for(scales, cols, first, count));
  const uint64_t before = factors.top * scales.cols * element_bytes(scales.dtype);
  read_floats(*scales.file, scales.offset_bytes + before, scales.dtype, factors.values);
  return factors;
}

/// Multiplies consecutive elements, the first of which is canonical element `first` of a matrix of
/// `cols` columns, by the scales of their blocks.
void scale(const StoredScales& scales, const Factors& factors, uint64_t cols, uint64_t first,
           std::span<float> values) {
  for (uint64_t done = 0; done < values.size();) {
    const uint64_t col = (first + done) % cols;
    const uint64_t block = col / scales.block_cols;
    const uint64_t end_col = std::min(cols, (block + 1) * scales.block_cols);
    const uint64_t count = std::min<uint64_t>(values.size() - done, end_col - col);
    const uint64_t row = block_row(scales, cols, first + done) - factors.top;
    const float factor = factors.values[row * scales.cols + block];
    for (float& value : values.subspan(done, count)) value *= factor;
    done += count;
  }
}

}  // namespace

void read_stored(const StoredTensor& stored, const TensorInfo& info, uint64_t first,
                 std::span<std::byte> out) {
  const uint64_t stored_size = element_bytes(stored.dtype);
  if (stored.dtype == info.dtype) {
    stored.file->read(stored.offset_bytes + first * stored_size, out);
    return;
  }
  const uint64_t size = element_bytes(info.dtype);
  Factors factors;
  if (stored.scales && !out.empty()) {
    factors = read_factors(*stored.scales, info.cols, first, out.size() / size);
  }
  std::vector<float> buffer(std::min(kElemsAtOnce, out.size() / size));
  while (!out.empty()) {
    const uint64_t count = std::min<uint64_t>(buffer.size(), out.size() / size);
    const auto values = std::span(buffer).first(count);
    read_floats(*stored.file, stored.offset_bytes + first * stored_size, stored.dtype, values);
    if (stored.scales) scale(*stored.scales, factors, info.cols, first, values);
    const auto written = out.first(count * size);
    if (write_floats(info.dtype, values, written)) {
      refuse_overflow(stored, info, first, values, written);
    }
    out = out.subspan(count * size);
    first += count;
  }
}

uint64_t stored_bytes(const StoredTensor& stored, const TensorInfo& info, uint64_t first,
                      uint64_t count) {
  const uint64_t bytes = count * element_bytes(stored.dtype);
  if (!stored.scales || stored.dtype == info.dtype || count == 0) return bytes;
  return bytes +
         factors_for(*stored.scales, info.cols, first, count) * element_bytes(stored.scales->dtype);
}

}  // namespace awex
