#pragma once

#include <bit>
#include <cstdint>

/// Conversions between smaller floats and fp32 as bit arithmetic: the same bits on cuda and host.
/// From fp32 they round to nearest, ties to even (IEEE 754-2019, section 4.3.1); a NaN stays a NaN,
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

/// e4m3 is the "fn" kind of OCP's 8-bit floating point specification 1.0: bias 7, no infinities,
/// largest value 448 (0x7e), and NaN where all seven bits are set.
inline constexpr float kLargestE4M3 = 448.0F;

[[nodiscard]] constexpr float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = (bits & 0x80U) << 24;
  const uint32_t exponent = (bits >> 3) & 0xfU;
  const uint32_t fraction = bits & 0x7U;
  uint32_t magnitude = (exponent + 120U) << 23 | fraction << 20;
  if (exponent == 0xfU && fraction == 0x7U) {
    magnitude = 0x7fc00000U;
  } else if (exponent == 0) {
    magnitude = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-9F);
  }
  return std::bit_cast<float>(sign | magnitude);
}

/// Saturates at +-448, infinities too; every NaN becomes 0x7f.
[[nodiscard]] constexpr uint8_t f32_to_e4m3(float value) {
  constexpr uint32_t kNan = 0x7fU;
  constexpr uint32_t kLargest = 0x7eU;
  // Its last place is 2^-9, the step of subnormals: what is added to it is rounded to such steps.
  constexpr float kStepper = 0x1p14F;
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffU;
  const float stepped = std::bit_cast<float>(magnitude) + kStepper;
  const uint32_t subnormal = std::bit_cast<uint32_t>(stepped) - std::bit_cast<uint32_t>(kStepper);
  const uint32_t rounded = shift_right_to_even(magnitude - (120U << 23), 20);
  const uint32_t normal = rounded < kLargest ? rounded : kLargest;
  const uint32_t number = (bits >> 24 & 0x80U) | (magnitude < 121U << 23 ? subnormal : normal);
  return static_cast<uint8_t>(magnitude > 0x7f800000U ? kNan : number);
}

/// What the elements of a block whose largest absolute value is `amax` are divided by to fit e4m3:
/// max(amax, 1e-4) / 448, the formula of block-scaled fp8 checkpoints. NaN, always with the same
/// bits, if amax is.
[[nodiscard]] constexpr float block_scale(float amax) {
  if (amax != amax) return std::bit_cast<float>(0x7fc00000U);
  return (amax < 1e-4F ? 1e-4F : amax) / kLargestE4M3;
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

struct F8E4M3Element {
  using Bits = uint8_t;
  [[nodiscard]] static constexpr float value(Bits bits) { return e4m3_to_f32(bits); }
  [[nodiscard]] static constexpr Bits bits(float value) { return f32_to_e4m3(value); }
};

/// An element's bits without the sign. As numbers they are in the order of the absolute values,
/// with NaNs behind all others.
template <class Element>
[[nodiscard]] constexpr typename Element::Bits magnitude_bits(typename Element::Bits bits) {
  using Bits = typename Element::Bits;
  return static_cast<Bits>(bits & (static_cast<Bits>(~Bits{0}) >> 1));
}

}  // namespace awex
