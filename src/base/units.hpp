#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace awex {

using Seconds = std::chrono::duration<double>;

/// Bytes from "8GiB", "8G" (both 2^30), "8GB" (10^9), "512B", "8589934592"; a fraction is allowed
/// before a unit. Throws a request error that shows the accepted forms, also for a number below
/// 2^20 without a unit that is not 0: that one was forgotten.
[[nodiscard]] uint64_t parse_bytes(std::string_view text);

/// A time from "30s", "500ms", "2m", "1h" or plain seconds. Must be positive; throws a request
/// error.
[[nodiscard]] Seconds parse_duration(std::string_view text);

/// Three significant digits in decimal units: "8.04 GB", "512 B".
[[nodiscard]] std::string format_bytes(uint64_t bytes);

/// "1.23 s", "12.3 ms", "45 us".
[[nodiscard]] std::string format_seconds(double seconds);

}  // namespace awex
