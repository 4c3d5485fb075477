#pragma once

#include <string>

#include "cycle/report.hpp"

namespace awex {

/// The report as one JSON object, schema_version 1, ended by a newline: real numbers with their
/// unit in the key, digests as "0x" and 16 hex digits, null for what is unknown.
[[nodiscard]] std::string render_json(const Report& report);

}  // namespace awex
