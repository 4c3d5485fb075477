#pragma once

#include <cstddef>
#include <string>

#include "cycle/report.hpp"

namespace awex {

/// The most columns that the span of a timeline is drawn in.
inline constexpr size_t kTimelineColumns = 60;

/// A version's phases as bars over time, one row for each role and tag (more where its
/// phases overlap). A bar begins with its phase's name as far as it fits, and has at least one
/// column. `unicode` draws with block characters, otherwise ASCII. Lines are at most `width`
/// columns wide, and need some 30. Empty without phases.
[[nodiscard]] std::string render_timeline(const VersionReport& version, bool unicode, size_t width);

}  // namespace awex
