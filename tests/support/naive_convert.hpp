#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "model/dtype.hpp"

/// Conversions of elements by the definition of their formats, in double and by searching: slow,
/// and independent of model/convert.hpp.

namespace awex::test {

struct FloatFormat {
  int fraction_bits;
  int bias;
  uint32_t sign;         ///< The sign's bit.
  uint32_t last_finite;  ///< Magnitude bits of the largest value.
  uint32_t infinity;     ///< Magnitude bits; 0 where the format has none and saturates.
  uint32_t quiet_nan;    ///< What a NaN becomes, where its payload does not matter.
};

inline FloatFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return {7, 127, 0x8000, 0x7f7f, 0x7f80, 0x7fc0};
    case DType::kF16:
      return {10, 15, 0x8000, 0x7bff, 0x7c00, 0x7e00};
    case DType::kF32:
      return {23, 127, 0x80000000, 0x7f7fffff, 0x7f800000, 0x7fc00000};
    case DType::kF8E4M3:
      return {3, 7, 0x80, 0x7e, 0, 0x7f};
    case DType::kF8E5M2:
      break;
  }
  throw std::logic_error("no test converts this dtype");
}

/// The value of an element's bits.
inline double naive_value(DType dtype, uint32_t bits) {
  const auto format = format_of(dtype);
  const uint32_t magnitude = bits & (format.sign - 1);
  const double sign = (bits & format.sign) != 0 ? -1 : 1;
  if (format.infinity != 0 && magnitude == format.infinity) return sign * HUGE_VAL;
  if (magnitude > format.last_finite) return std::numeric_limits<double>::quiet_NaN();
  const auto exponent = static_cast<int>(magnitude >> format.fraction_bits);
  const uint32_t fraction = magnitude & ((1U << format.fraction_bits) - 1);
  const uint32_t whole = exponent == 0 ? fraction : fraction + (1U << format.fraction_bits);
  return sign * std::ldexp(whole, std::max(exponent, 1) - format.bias - format.fraction_bits);
}

/// The bits of the element nearest to `value`, the even one of two that are equally near: found by
/// bisection among all finite elements, whose bits are in the order of their values.
inline uint32_t naive_bits(DType dtype, double value) {
  const auto format = format_of(dtype);
  if (std::isnan(value)) return format.quiet_nan;
  const uint32_t sign = std::signbit(value) ? format.sign : 0;
  const double wanted = std::abs(value);
  uint32_t below = 0;
  uint32_t above = format.last_finite + 1;
  while (above - below > 1) {
    const uint32_t middle = below + (above - below) / 2;
    (naive_value(dtype, middle) <= wanted ? below : above) = middle;
  }
  const bool beyond_all = above > format.last_finite;
  if (beyond_all && format.infinity == 0) return sign | below;
  // What comes after the largest value, were there one more, is infinity.
  const double step = naive_value(dtype, below) - naive_value(dtype, below - (beyond_all ? 1 : 0));
  const double next = beyond_all ? naive_value(dtype, below) + step : naive_value(dtype, above);
  const double down = wanted - naive_value(dtype, below);
  const double up = next - wanted;
  const bool rounds_up = up < down || (up == down && below % 2 == 1);
  return sign | (rounds_up ? above : below);
}

/// An element in memory that becomes one of another dtype, divided by `scale` in fp32 before. NaNs
/// give a NaN of any payload.
inline uint32_t naive_conversion(DType from, DType to, uint32_t bits, float scale) {
  const auto value = static_cast<float>(naive_value(from, bits));
  return naive_bits(to, static_cast<double>(value / scale));
}

inline bool naive_is_nan(DType dtype, uint32_t bits) {
  return std::isnan(naive_value(dtype, bits));
}

inline uint32_t load_bits(const std::byte* element, uint64_t element_size) {
  uint32_t bits = 0;
  std::memcpy(&bits, element, element_size);
  return bits;
}

}  // namespace awex::test
