#include "model/convert.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

using namespace awex;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The value of a 16-bit float with these field widths, as the standard defines it, in double.
double value_of(uint16_t bits, int fraction_bits, int bias) {
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int last_exponent = 0x7fff >> fraction_bits;
  if (exponent == last_exponent) {
    return fraction == 0 ? sign * HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
  }
  const int whole = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
  return sign * std::ldexp(whole, std::max(exponent, 1) - bias - fraction_bits);
}

double bf16_value(uint16_t bits) { return value_of(bits, 7, 127); }
double f16_value(uint16_t bits) { return value_of(bits, 10, 15); }

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

/// Whether `bits` is the neighbour of `value` that round to nearest, ties to even, gives. Infinity
/// counts as the next power of two.
bool is_nearest(double value, uint16_t bits, double (*value_of_bits)(uint16_t), double overflow) {
  const auto finite = [&](uint16_t b) {
    const double v = value_of_bits(b);
    return std::isinf(v) ? std::copysign(overflow, v) : v;
  };
  const double error = std::abs(finite(bits) - value);
  for (const int step : {-1, 1}) {
    const int magnitude = (bits & 0x7fff) + step;
    if (magnitude < 0) continue;
    const auto neighbour = static_cast<uint16_t>((bits & 0x8000) | magnitude);
    if (std::isnan(value_of_bits(neighbour))) continue;
    const double other = std::abs(finite(neighbour) - value);
    if (other < error || (other == error && (bits & 1) != 0)) return false;
  }
  return std::signbit(value) == ((bits & 0x8000) != 0);
}

/// Floats of all sizes, and those half way between two 16-bit floats or next to that.
template <class Check>
void for_many_floats(double (*value_of_bits)(uint16_t), const Check& check) {
  std::mt19937 random(7);
  for (int i = 0; i < 1000000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isfinite(value)) check(value);
  }
  for (uint32_t bits = 0; bits + 1 < 0x8000; ++bits) {
    const double a = value_of_bits(static_cast<uint16_t>(bits));
    const double b = value_of_bits(static_cast<uint16_t>(bits + 1));
    if (!std::isfinite(a) || !std::isfinite(b)) continue;
    const auto middle = static_cast<float>((a + b) / 2);
    for (const float value :
         {middle, std::nextafter(middle, kInfinity), std::nextafter(middle, -kInfinity)}) {
      check(value);
      check(-value);
    }
  }
}

}  // namespace

TEST_CASE("every 16-bit float is read as the value that the standard gives it") {
  int wrong = 0;
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    wrong += !same(static_cast<double>(bf16_to_f32(bits)), bf16_value(bits));
    wrong += !same(static_cast<double>(f16_to_f32(bits)), f16_value(bits));
  }
  CHECK(wrong == 0);
}

TEST_CASE("every 16-bit float comes back from fp32 unchanged, NaNs as quiet NaNs") {
  int wrong = 0;
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const bool bf16_nan = std::isnan(bf16_value(bits));
    const bool f16_nan = std::isnan(f16_value(bits));
    wrong += f32_to_bf16(bf16_to_f32(bits)) != (bf16_nan ? bits | 0x40 : bits);
    wrong += f32_to_f16(f16_to_f32(bits)) != (f16_nan ? bits | 0x200 : bits);
  }
  CHECK(wrong == 0);
}

TEST_CASE("fp32 is rounded to the nearest 16-bit float, ties to even") {
  int wrong = 0;
  for_many_floats(bf16_value, [&](float value) {
    wrong += !is_nearest(static_cast<double>(value), f32_to_bf16(value), bf16_value, 0x1p128);
  });
  CHECK(wrong == 0);
  for_many_floats(f16_value, [&](float value) {
    // What is far beyond the largest value is infinity as well, but no neighbour's distance says
    // so.
    if (std::abs(value) > 0x1p16F) {
      wrong += f32_to_f16(value) != (value < 0 ? 0xfc00 : 0x7c00);
    } else {
      wrong += !is_nearest(static_cast<double>(value), f32_to_f16(value), f16_value, 0x1p16);
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("the edges of the ranges") {
  CHECK(f32_to_f16(65519.996F) == 0x7bff);
  CHECK(f32_to_f16(65520.0F) == 0x7c00);
  CHECK(f32_to_f16(0x1p-25F) == 0);
  CHECK(f32_to_f16(-0x1p-25F) == 0x8000);
  CHECK(f32_to_f16(0x1.000002p-25F) == 1);
  CHECK(f32_to_f16(kInfinity) == 0x7c00);
  CHECK(f32_to_f16(-kInfinity) == 0xfc00);
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(f32_to_bf16(-kInfinity) == 0xff80);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(kNan))));
  CHECK(std::isnan(f16_to_f32(f32_to_f16(kNan))));
  // A NaN whose upper bits alone would look like infinity.
  const auto low_nan = std::bit_cast<float>(0x7f800001U);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(low_nan))));
  CHECK(std::isnan(f16_to_f32(f32_to_f16(low_nan))));
}

static_assert(f32_to_bf16(1.0F) == 0x3f80 && bf16_to_f32(0x3f80) == 1.0F);
static_assert(f32_to_f16(1.0F) == 0x3c00 && f16_to_f32(0x3c00) == 1.0F);
static_assert(F32Element::value(F32Element::bits(1.5F)) == 1.5F);
