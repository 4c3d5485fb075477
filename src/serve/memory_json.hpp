#pragma once

#include <nlohmann/json_fwd.hpp>

#include "cycle/report.hpp"

namespace awex {

/// A job's memory against its books, as reports and the status have it.
[[nodiscard]] nlohmann::ordered_json memory_json(const MemoryReport& memory);

}  // namespace awex
