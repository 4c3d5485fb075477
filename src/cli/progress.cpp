#include "cli/progress.hpp"

#include <fmt/format.h>
#include <string>

#include "base/log.hpp"
#include "base/units.hpp"

namespace awex {

std::string loading_text(uint64_t done_bytes, uint64_t all_bytes) {
  return fmt::format("loading the weights: {} of {}", format_bytes(done_bytes),
                     format_bytes(all_bytes));
}

void LoadingLines::tell(const std::string& text) {
  constexpr double kLineEverySeconds = 10;
  if (watch_.seconds() < next_line_s_) return;
  log::note(text);
  next_line_s_ = watch_.seconds() + kLineEverySeconds;
}

TerminalProgress::TerminalProgress(bool speaks, uint64_t versions, ReportFiles& files)
    : speaks_(speaks), line_(speaks), versions_(versions), files_(files) {}

void TerminalProgress::phase_started(const PhaseEvent& event) {
  if (!line_.moves()) return;
  line_.draw(fmt::format("version {} of {}: {} ...", event.version, versions_,
                         phase_subject(event.phase, event.role, event.tag)));
}

void TerminalProgress::phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) {
  if (!speaks_ || log::level() != log::Level::kVerbose) return;
  log::detail(fmt::format("version {}: {}: {}", event.version,
                          phase_subject(event.phase, event.role, event.tag),
                          phase_outcome(seconds, bytes)));
}

void TerminalProgress::run_started(const Report& report) {
  if (!speaks_ || line_.moves()) return;
  log::note(fmt::format("{}: {}, {} -> {}, {} ranks, {}", report.command, report.model_name,
                        report.trainer, report.inference, report.ranks, report.backend));
}

void TerminalProgress::loading(uint64_t done_bytes, uint64_t all_bytes) {
  loaded_bytes_ = done_bytes;
  all_bytes_ = all_bytes;
  const auto text = loading_text(done_bytes, all_bytes);
  if (line_.moves()) {
    line_.draw(text);
  } else if (speaks_) {
    loading_.tell(text);
  }
}

void TerminalProgress::loaded() {
  if (!speaks_ || line_.moves()) return;
  log::note(fmt::format("loaded the weights: {} of {} in {}", format_bytes(loaded_bytes_),
                        format_bytes(all_bytes_), format_seconds(loading_.seconds())));
}

void TerminalProgress::version_finished(const Report& report) {
  if (!speaks_) return;
  try {
    files_.update(report);
  } catch (const Error& error) {
    log::warning(error.what());  // the end of the job tries again, and fails then
  }
  const auto& version = report.versions.back();
  if (line_.moves()) return;
  log::note(fmt::format("version {} of {}: {} in {}", version.version, versions_,
                        version.committed ? "committed" : "done",
                        format_seconds(version.seconds.value_or(0))));
}

}  // namespace awex
