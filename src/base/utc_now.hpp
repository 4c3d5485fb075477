#pragma once

#include <string>

namespace awex {

/// "2026-11-27T10:00:00Z".
[[nodiscard]] std::string utc_now();

}  // namespace awex
