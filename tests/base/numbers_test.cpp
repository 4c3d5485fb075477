#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <string>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/units.hpp"

using namespace awex;

namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

/// The hint of the request error that `call` must throw.
template <class Call>
std::string hint_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    return error.hint();
  }
  FAIL_CHECK("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("products and sums that do not fit are request errors that name what is too large") {
  CHECK(checked_mul(kMax, 1, "it") == kMax);
  CHECK(checked_mul(1ULL << 32, (1ULL << 32) - 1, "it") == kMax - (1ULL << 32) + 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(checked_mul(1ULL << 32, 1ULL << 32, "the embedding")),
                       "the embedding is too large: 4294967296 x 4294967296 does not fit 64 bits",
                       Error);
  CHECK(checked_add(kMax - 1, 1, "it") == kMax);
  CHECK_THROWS_WITH_AS(static_cast<void>(checked_add(kMax, 1, "the sum")),
                       "the sum is too large: 18446744073709551615 + 1 does not fit 64 bits",
                       Error);
}

TEST_CASE("narrowing keeps what fits and throws for the rest") {
  CHECK(narrow<uint8_t>(255) == 255);
  CHECK(narrow<int32_t>(uint64_t{1} << 30) == 1 << 30);
  CHECK(narrow<int8_t>(-128) == -128);
  CHECK_THROWS_AS(static_cast<void>(narrow<uint8_t>(256)), Error);
  CHECK_THROWS_AS(static_cast<void>(narrow<uint64_t>(-1)), Error);
  CHECK_THROWS_AS(static_cast<void>(narrow<int32_t>(kMax)), Error);
  CHECK_THROWS_AS(static_cast<void>(narrow<int64_t>(kMax)), Error);
}

TEST_CASE("rounding up does not overflow on the way") {
  CHECK(ceil_div(0, 4) == 0);
  CHECK(ceil_div(1, 4) == 1);
  CHECK(ceil_div(8, 4) == 2);
  CHECK(ceil_div(kMax, 2) == (1ULL << 63));
  CHECK(round_up(0, 256) == 0);
  CHECK(round_up(1, 256) == 256);
  CHECK(round_up(256, 256) == 256);
}

TEST_CASE("sizes are read with binary and decimal units") {
  CHECK(parse_bytes("0") == 0);
  CHECK(parse_bytes("1048576") == 1ULL << 20);
  CHECK(parse_bytes("512B") == 512);
  CHECK(parse_bytes("8GiB") == 8ULL << 30);
  CHECK(parse_bytes("8G") == 8ULL << 30);
  CHECK(parse_bytes("8GB") == 8000000000ULL);
  CHECK(parse_bytes("1.5 MiB") == 3ULL << 19);
  CHECK(parse_bytes("64K") == 65536);
  CHECK(parse_bytes("2TiB") == 2ULL << 40);
}

TEST_CASE("what is no size is refused with the accepted forms") {
  for (const auto* text :
       {"", "GiB", "8 gigs", "-1", "nan", "inf", "1e30", "8GiB8", "0x10", "8 G B"}) {
    CAPTURE(text);
    CHECK(hint_of([&] { static_cast<void>(parse_bytes(text)); }).find("8GiB") != std::string::npos);
  }
}

TEST_CASE("durations are read with units and must be positive") {
  CHECK(parse_duration("30").count() == doctest::Approx(30));
  CHECK(parse_duration("30s").count() == doctest::Approx(30));
  CHECK(parse_duration("500ms").count() == doctest::Approx(0.5));
  CHECK(parse_duration("2m").count() == doctest::Approx(120));
  CHECK(parse_duration("1.5h").count() == doctest::Approx(5400));
  for (const auto* text : {"", "0", "0s", "-1s", "s", "5 parsecs", "nan", "inf", "1e10"}) {
    CAPTURE(text);
    CHECK(hint_of([&] { static_cast<void>(parse_duration(text)); }).find("500ms") !=
          std::string::npos);
  }
}

TEST_CASE("bytes are shown with three digits") {
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(999) == "999 B");
  CHECK(format_bytes(1000) == "1.00 kB");
  CHECK(format_bytes(9994) == "9.99 kB");
  CHECK(format_bytes(9996) == "10.0 kB");
  CHECK(format_bytes(99960) == "100 kB");
  CHECK(format_bytes(999600) == "1.00 MB");
  CHECK(format_bytes(8044936192) == "8.04 GB");
  CHECK(format_bytes(kMax) == "18447 PB");
}

TEST_CASE("seconds are shown with three digits") {
  CHECK(format_seconds(12.34) == "12.3 s");
  CHECK(format_seconds(1) == "1.00 s");
  CHECK(format_seconds(0.5) == "500 ms");
  CHECK(format_seconds(0.00123) == "1.23 ms");
  CHECK(format_seconds(0.000045) == "45 us");
  CHECK(format_seconds(0) == "0 us");
}
