#pragma once

#include <string>

#include "cli/wrapped_text.hpp"
#include "cycle/report.hpp"

namespace awex {

/// How text for a person is drawn.
struct TextStyle {
  bool unicode = false;       ///< Block characters; ASCII otherwise.
  bool color = false;         ///< ANSI colours for verdicts.
  size_t width = kTextWidth;  ///< Columns that it has, at least 1.
};

/// The report for a person: lines of metadata that begin with '#', a table with one line a phase, a
/// line a version, the timeline of the last version, memory by role and tag, and the verdicts on
/// leaks, digests and commit. With more than kVersionsInFull versions only the first and the last
/// are listed phase by phase.
[[nodiscard]] std::string render_table(const Report& report, const TextStyle& style);

/// Up to this many versions have all their phases listed.
inline constexpr size_t kVersionsInFull = 3;

}  // namespace awex
