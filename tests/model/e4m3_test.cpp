#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "model/convert.hpp"
#include "support/naive_convert.hpp"

using namespace awex;
using namespace awex::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The code nearest to `value`, by trying all.
uint8_t nearest_code(double value) {
  if (std::isnan(value)) return 0x7f;
  uint32_t best = 0;
  double best_error = HUGE_VAL;
  for (uint32_t code = 0; code < 0x7f; ++code) {
    const double error =
        std::abs(std::min(std::abs(value), 448.0) - naive_value(DType::kF8E4M3, code));
    if (error < best_error || (error == best_error && code % 2 == 0)) {
      best = code;
      best_error = error;
    }
  }
  return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

int wrong_around(float value) {
  int wrong = 0;
  for (const float near :
       {value, std::nextafter(value, kInfinity), std::nextafter(value, -kInfinity)}) {
    wrong += f32_to_e4m3(near) != nearest_code(static_cast<double>(near));
    wrong += f32_to_e4m3(-near) != nearest_code(static_cast<double>(-near));
  }
  return wrong;
}

}  // namespace

TEST_CASE("every e4m3 code is read as the value that the format gives it, and comes back") {
  int wrong = 0;
  for (uint32_t i = 0; i < 256; ++i) {
    const auto code = static_cast<uint8_t>(i);
    const double wanted = naive_value(DType::kF8E4M3, code);
    const auto value = static_cast<double>(e4m3_to_f32(code));
    const bool is_nan = (code & 0x7f) == 0x7f;
    wrong += std::isnan(wanted) != is_nan;
    wrong += !(is_nan ? std::isnan(value)
                      : value == wanted && std::signbit(value) == ((code & 0x80) != 0));
    wrong += f32_to_e4m3(e4m3_to_f32(code)) != (is_nan ? 0x7f : code);
  }
  CHECK(wrong == 0);
  CHECK(e4m3_to_f32(0x7e) == 448.0F);
  CHECK(e4m3_to_f32(0x01) == 0x1p-9F);
  CHECK(e4m3_to_f32(0x08) == 0x1p-6F);
}

TEST_CASE("every fp16 and bf16 value is rounded to the nearest e4m3, ties to even") {
  int wrong = 0;
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    for (const float value : {f16_to_f32(bits), bf16_to_f32(bits)}) {
      wrong += f32_to_e4m3(value) != nearest_code(static_cast<double>(value));
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("fp32 values of all sizes, ties and their neighbours are rounded to the nearest e4m3") {
  std::mt19937 random(7);
  int wrong = 0;
  for (int i = 0; i < 300'000; ++i) {
    const auto bits = static_cast<uint32_t>(random());
    wrong += wrong_around(std::bit_cast<float>(bits));
    // Most random floats are far outside e4m3's range; these are inside.
    wrong += wrong_around(std::bit_cast<float>((bits & 0x80ffffffU) % 0x09000000U + 0x3a000000U));
  }
  for (uint32_t code = 0; code < 0x7e; ++code) {
    const double middle =
        (naive_value(DType::kF8E4M3, code) + naive_value(DType::kF8E4M3, code + 1)) / 2;
    wrong += wrong_around(static_cast<float>(middle));
  }
  CHECK(wrong == 0);
}

TEST_CASE("the edges of e4m3's range") {
  CHECK(f32_to_e4m3(0.0F) == 0x00);
  CHECK(f32_to_e4m3(-0.0F) == 0x80);
  CHECK(f32_to_e4m3(448.0F) == 0x7e);
  CHECK(f32_to_e4m3(464.0F) == 0x7e);
  CHECK(f32_to_e4m3(480.0F) == 0x7e);
  CHECK(f32_to_e4m3(std::numeric_limits<float>::max()) == 0x7e);
  CHECK(f32_to_e4m3(kInfinity) == 0x7e);
  CHECK(f32_to_e4m3(-kInfinity) == 0xfe);
  CHECK(f32_to_e4m3(0x1p-10F) == 0x00);
  CHECK(f32_to_e4m3(0x1.8p-9F) == 0x02);
  CHECK(f32_to_e4m3(-std::numeric_limits<float>::denorm_min()) == 0x80);
  for (const uint32_t nan : {0x7f800001U, 0xffc00000U, 0x7fffffffU, 0xffffffffU}) {
    CHECK(f32_to_e4m3(std::bit_cast<float>(nan)) == 0x7f);
  }
}

TEST_CASE("a block's scale makes its largest element the largest e4m3, and is never tiny") {
  CHECK(block_scale(448.0F) == 1.0F);
  CHECK(block_scale(1.0F) == 1.0F / 448.0F);
  CHECK(block_scale(0.0F) == 1e-4F / 448.0F);
  CHECK(block_scale(1e-4F) == 1e-4F / 448.0F);
  CHECK(block_scale(kInfinity) == kInfinity);
  const float nan = block_scale(std::bit_cast<float>(0x7f812345U));
  CHECK(std::bit_cast<uint32_t>(nan) == 0x7fc00000U);
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    const auto amax = std::bit_cast<float>(static_cast<uint32_t>(random() % 0x7f800000U));
    if (amax < 1e-4F) continue;
    CHECK(f32_to_e4m3(amax / block_scale(amax)) == 0x7e);
  }
}

TEST_CASE("bits without the sign are in the order of the absolute values, NaN last") {
  CHECK(magnitude_bits<Bf16Element>(0xbf80) == 0x3f80);
  CHECK(magnitude_bits<F16Element>(0xffff) == 0x7fff);
  CHECK(magnitude_bits<F32Element>(0x80000000U) == 0);
  CHECK(magnitude_bits<F8E4M3Element>(0xff) == 0x7f);
  int wrong = 0;
  for (uint32_t bits = 1; bits <= 0x7fff; ++bits) {
    for (const auto dtype : {DType::kBf16, DType::kF16}) {
      const double low = naive_value(dtype, bits - 1);
      const double high = naive_value(dtype, bits);
      wrong += !(low < high || std::isnan(high));
    }
  }
  CHECK(wrong == 0);
}

static_assert(f32_to_e4m3(1.0F) == 0x38 && e4m3_to_f32(0x38) == 1.0F);
static_assert(f32_to_e4m3(0x1p-9F) == 0x01 && f32_to_e4m3(-448.0F) == 0xfe);
