#pragma once

#include <string>

#include "cli/render_table.hpp"

namespace awex {

/// A resident job's status for a person, from what render_status_json has written: lines about the
/// job, then one for each rank with its memory by tag, and one with its process. At most
/// style.width wide. What is not there is unknown, as in the status of a job that begins. Throws a
/// run-time error for what is no JSON object.
[[nodiscard]] std::string render_status(const std::string& json, const TextStyle& style);

/// What of a status changes only when something happens, not with time alone: for comparing.
[[nodiscard]] std::string lasting_status(const std::string& json);

}  // namespace awex
