#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace awex {

/// What identifies a GPU (DeviceIdentity::uuid).
using GpuUuid = std::array<uint8_t, 16>;

/// 32 hex digits, small letters.
[[nodiscard]] inline std::string hex_of(const GpuUuid& uuid) {
  return fmt::format("{:02x}", fmt::join(uuid, ""));
}

/// The reverse, of digits in either case; nothing for other text.
[[nodiscard]] inline std::optional<GpuUuid> uuid_of_hex(std::string_view digits) {
  GpuUuid uuid{};
  if (digits.size() != 2 * uuid.size() ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
    return std::nullopt;
  }
  for (size_t i = 0; i < uuid.size(); ++i) {
    uuid.at(i) =
        static_cast<uint8_t>(std::stoul(std::string(digits.substr(2 * i, 2)), nullptr, 16));
  }
  return uuid;
}

}  // namespace awex
