#include "base/units.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "base/error.hpp"

// Why CLI11 (2.1 in Debian 12, 2.4 in Ubuntu 24.04) does not read these: AsSizeValue takes no
// fraction, "1.5 MiB"; AsNumberWithUnit<double>, which takes it, writes the product with six
// digits, "8589934593B" as 8.58993e+09; in 2.1 both take "-1", and neither tells the accepted
// forms.

namespace awex {
namespace {

struct NumberAndUnit {
  double number;
  std::string_view unit;
};

std::optional<NumberAndUnit> split(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || !std::isfinite(number) || number < 0) return std::nullopt;
  auto unit = text.substr(static_cast<size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  return NumberAndUnit{number, unit};
}

struct Unit {
  std::string_view name;
  double factor;
};

constexpr std::array<Unit, 13> kByteUnits{{{"", 1},
                                           {"B", 1},
                                           {"K", 0x1p10},
                                           {"KiB", 0x1p10},
                                           {"KB", 1e3},
                                           {"M", 0x1p20},
                                           {"MiB", 0x1p20},
                                           {"MB", 1e6},
                                           {"G", 0x1p30},
                                           {"GiB", 0x1p30},
                                           {"GB", 1e9},
                                           {"TiB", 0x1p40},
                                           {"TB", 1e12}}};

constexpr std::array<Unit, 5> kTimeUnits{{{"", 1}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}}};

template <size_t N>
std::optional<double> parse(std::string_view text, const std::array<Unit, N>& units) {
  const auto parts = split(text);
  if (!parts) return std::nullopt;
  for (const auto& unit : units) {
    if (unit.name == parts->unit) return parts->number * unit.factor;
  }
  return std::nullopt;
}

/// Three significant digits of a number in [1, 1000).
std::string three_digits(double value) {
  if (value >= 99.95) return fmt::format("{:.0f}", value);
  if (value >= 9.995) return fmt::format("{:.1f}", value);
  return fmt::format("{:.2f}", value);
}

}  // namespace

uint64_t parse_bytes(std::string_view text) {
  // Nobody means so few bytes: the unit was forgotten.
  constexpr double kFewestWithoutUnit = 0x1p20;
  const auto parts = split(text);
  if (parts && parts->unit.empty() && parts->number > 0 && parts->number < kFewestWithoutUnit) {
    throw request_error(fmt::format("\"{}\" has no unit, and would be {} bytes", text, text),
                        fmt::format("write {0}GiB, {0}MiB or, if it is meant, {0}B", text));
  }
  const auto bytes = parse(text, kByteUnits);
  if (!bytes || *bytes >= 0x1p63) {
    throw request_error(fmt::format("\"{}\" is not a size", text),
                        "write a size as 8GiB, 512MiB, 8GB or a number of bytes");
  }
  return static_cast<uint64_t>(*bytes);
}

Seconds parse_duration(std::string_view text) {
  const auto seconds = parse(text, kTimeUnits);
  if (!seconds || *seconds <= 0 || *seconds > 1e9) {
    throw request_error(fmt::format("\"{}\" is not a duration", text),
                        "write a positive time as 30s, 500ms, 2m or a number of seconds");
  }
  return Seconds(*seconds);
}

std::string format_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 6> kNames{"B", "kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kNames.size()) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{} {}", three_digits(value), kNames.at(unit));
}

std::string format_seconds(double seconds) {
  if (seconds >= 0.9995) return fmt::format("{} s", three_digits(seconds));
  if (seconds >= 0.9995e-3) return fmt::format("{} ms", three_digits(seconds * 1e3));
  return fmt::format("{:.0f} us", seconds * 1e6);
}

}  // namespace awex
