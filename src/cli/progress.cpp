#include "cli/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <string>

#include "base/log.hpp"
#include "base/units.hpp"
#include "cli/options.hpp"

namespace awex {
namespace {

std::string subject(const PhaseEvent& event) {
  return event.tag.empty() ? fmt::format("{} {}", event.phase, event.role)
                           : fmt::format("{} {} {}", event.phase, event.role, event.tag);
}

}  // namespace

TerminalProgress::TerminalProgress(bool speaks, uint64_t versions, ReportFiles& files)
    : speaks_(speaks),
      moves_(speaks && log::level() == log::Level::kNormal && is_terminal(STDERR_FILENO)),
      versions_(versions),
      files_(files) {}

void TerminalProgress::phase_started(const PhaseEvent& event) {
  if (!moves_) return;
  log::draw(
      fmt::format("\r\033[Kversion {} of {}: {} ...", event.version, versions_, subject(event)));
  drawn_ = true;
}

void TerminalProgress::phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) {
  if (!speaks_ || log::level() != log::Level::kVerbose) return;
  const auto moved = bytes == 0 || seconds <= 0
                         ? ""
                         : fmt::format(", {}, {:.2f} GB/s", format_bytes(bytes),
                                       static_cast<double>(bytes) / seconds / 1e9);
  log::detail(fmt::format("version {}: {}: {}{}", event.version, subject(event),
                          format_seconds(seconds), moved));
}

void TerminalProgress::run_started(const Report& report) {
  if (!speaks_ || moves_) return;
  log::note(fmt::format("{}: {}, {} -> {}, {} ranks, {}", report.command, report.model_name,
                        report.trainer, report.inference, report.ranks, report.backend));
}

void TerminalProgress::loading(uint64_t done_bytes, uint64_t all_bytes) {
  constexpr double kLineEverySeconds = 10;
  loaded_bytes_ = done_bytes;
  all_bytes_ = all_bytes;
  const auto text = fmt::format("loading the weights: {} of {}", format_bytes(done_bytes),
                                format_bytes(all_bytes));
  if (moves_) {
    log::draw("\r\033[K" + text);
    drawn_ = true;
  } else if (speaks_ && watch_.seconds() >= next_line_s_) {
    log::note(text);
    next_line_s_ = watch_.seconds() + kLineEverySeconds;
  }
}

void TerminalProgress::loaded() {
  if (!speaks_ || moves_) return;
  log::note(fmt::format("loaded the weights: {} of {} in {}", format_bytes(loaded_bytes_),
                        format_bytes(all_bytes_), format_seconds(watch_.seconds())));
}

void TerminalProgress::version_finished(const Report& report) {
  if (!speaks_) return;
  try {
    files_.update(report);
  } catch (const Error& error) {
    log::warning(error.what());  // the end of the job tries again, and fails then
  }
  const auto& version = report.versions.back();
  if (moves_) return;
  log::note(fmt::format("version {} of {}: {} in {}", version.version, versions_,
                        version.committed ? "committed" : "done",
                        format_seconds(version.seconds.value_or(0))));
}

void TerminalProgress::clear() {
  if (drawn_) log::draw("\r\033[K");
  drawn_ = false;
}

}  // namespace awex
