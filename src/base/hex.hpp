#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace awex {

/// Two hex digits a byte, small letters.
template <size_t N>
[[nodiscard]] std::string hex_of(const std::array<uint8_t, N>& bytes) {
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

/// The reverse, of digits in either case; nothing for other text.
template <size_t N>
[[nodiscard]] std::optional<std::array<uint8_t, N>> bytes_of_hex(std::string_view digits) {
  std::array<uint8_t, N> bytes{};
  if (digits.size() != 2 * N ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
    return std::nullopt;
  }
  for (size_t i = 0; i < N; ++i) {
    bytes.at(i) =
        static_cast<uint8_t>(std::stoul(std::string(digits.substr(2 * i, 2)), nullptr, 16));
  }
  return bytes;
}

}  // namespace awex
