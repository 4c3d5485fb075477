#pragma once

#include <string>

namespace awex {

/// "2026-11-27T10:00:00Z".
[[nodiscard]] std::string utc_now();
/// The same with milliseconds, "2026-05-04T03:02:01.004Z".
[[nodiscard]] std::string utc_now_in_milliseconds();

}  // namespace awex
