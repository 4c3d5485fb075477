#pragma once

#include <string>

#include "cycle/report.hpp"

namespace awex {

/// The report as Chrome trace event JSON, which Perfetto and chrome://tracing open: a process for
/// each rank, a thread for each tag, a complete ("X") event for each rank's phase in microseconds.
/// Format: "Trace Event Format", Google, 2016.
[[nodiscard]] std::string render_trace(const Report& report);

}  // namespace awex
