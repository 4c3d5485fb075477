#pragma once

#include <string>

#include "cli/render_table.hpp"
#include "doctor/examination.hpp"

namespace awex {

/// The doctor's report for a person, at most 80 columns wide: a line a check with its verdict and
/// reason, and a remedy below those that have one. Ranks that have found the same share a line.
[[nodiscard]] std::string render_doctor(const DoctorReport& report, const TextStyle& style);

/// The same for programs: one JSON object with what each rank has found.
[[nodiscard]] std::string render_doctor_json(const DoctorReport& report);

/// Ranks as text: "0-3,6".
[[nodiscard]] std::string rank_list(const std::vector<int>& ranks);

}  // namespace awex
