#pragma once

#include <cstdint>
#include <limits>

#include "base/error.hpp"

namespace awex {

/// a·b, or a request error that names `what` when the product does not fit 64 bits.
[[nodiscard]] inline uint64_t checked_mul(uint64_t a, uint64_t b, const char* what) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    throw request_error(fmt::format("{} is too large: {} x {} does not fit 64 bits", what, a, b));
  }
  return product;
}

/// a+b, or a request error that names `what` when the sum does not fit 64 bits.
[[nodiscard]] inline uint64_t checked_add(uint64_t a, uint64_t b, const char* what) {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    throw request_error(fmt::format("{} is too large: {} + {} does not fit 64 bits", what, a, b));
  }
  return sum;
}

/// `value` as a `To`, or a run-time error when it does not fit.
template <class To, class From>
[[nodiscard]] To narrow(From value) {
  const To result = static_cast<To>(value);
  if (static_cast<From>(result) != value || (result < To{}) != (value < From{})) {
    throw runtime_error(fmt::format("the number {} does not fit its place", value));
  }
  return result;
}

[[nodiscard]] constexpr uint64_t ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

/// The smallest multiple of `step` that is at least `value`.
[[nodiscard]] constexpr uint64_t round_up(uint64_t value, uint64_t step) {
  return ceil_div(value, step) * step;
}

}  // namespace awex
