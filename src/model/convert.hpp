#pragma once

#include <bit>
#include <cstdint>

/// Conversions between 16-bit floats and fp32 as bit arithmetic: the same bits on cuda and host. To
/// 16 bits they round to nearest, ties to even (IEEE 754-2019, section 4.3.1); a NaN stays a NaN,
/// made quiet.

namespace awex {

/// value / 2^shift, rounded to nearest, ties to even. `shift` is in [1, 31]; the sum value +
/// 2^(shift-1) must fit 32 bits.
[[nodiscard]] constexpr uint32_t shift_right_to_even(uint32_t value, uint32_t shift) {
  const uint32_t odd = (value >> shift) & 1U;
  return (value + (1U << (shift - 1)) - 1U + odd) >> shift;
}

[[nodiscard]] constexpr float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

[[nodiscard]] constexpr uint16_t f32_to_bf16(float value) {
  constexpr uint32_t kInfinity = 0x7f800000U;
  constexpr uint32_t kQuiet = 0x40U;
  const auto bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffffU) > kInfinity;
  return static_cast<uint16_t>(is_nan ? (bits >> 16) | kQuiet : shift_right_to_even(bits, 16));
}

[[nodiscard]] constexpr float f16_to_f32(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fU;
  const uint32_t fraction = bits & 0x3ffU;
  uint32_t magnitude = 0;
  if (exponent == 0x1fU) {
    magnitude = 0x7f800000U | fraction << 13;
  } else if (exponent == 0) {
    magnitude = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24F);
  } else {
    magnitude = (exponent + 112U) << 23 | fraction << 13;
  }
  return std::bit_cast<float>(sign | magnitude);
}

[[nodiscard]] constexpr uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  const uint32_t exponent = magnitude >> 23;
  uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  } else if (exponent >= 127U + 16U) {  // 2^16 and more, infinity
    half = 0x7c00U;
  } else if (exponent >= 127U - 14U) {  // normal; what rounds up to 2^16 becomes infinity by itself
    half = shift_right_to_even(magnitude - (112U << 23), 13);
  } else if (exponent >= 127U - 25U) {  // subnormal, in steps of 2^-24
    half = shift_right_to_even((magnitude & 0x7fffffU) | 0x800000U, 126U - exponent);
  }
  return static_cast<uint16_t>(sign | half);
}

/// An element type as its stored bits and its value, for templates over dtypes.
struct Bf16Element {
  using Bits = uint16_t;
  [[nodiscard]] static constexpr float value(Bits bits) { return bf16_to_f32(bits); }
  [[nodiscard]] static constexpr Bits bits(float value) { return f32_to_bf16(value); }
};

struct F16Element {
  using Bits = uint16_t;
  [[nodiscard]] static constexpr float value(Bits bits) { return f16_to_f32(bits); }
  [[nodiscard]] static constexpr Bits bits(float value) { return f32_to_f16(value); }
};

struct F32Element {
  using Bits = uint32_t;
  [[nodiscard]] static constexpr float value(Bits bits) { return std::bit_cast<float>(bits); }
  [[nodiscard]] static constexpr Bits bits(float value) { return std::bit_cast<uint32_t>(value); }
};

}  // namespace awex
