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

/// Progress is a courtesy: a stderr that refuses it does not fail the job.
void write_to_terminal(const std::string& text) {
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace

Progress::Progress(bool speaks, uint64_t versions)
    : speaks_(speaks),
      moves_(speaks && log::level() == log::Level::kNormal && is_terminal(STDERR_FILENO)),
      versions_(versions) {}

void Progress::phase_started(const PhaseEvent& event) {
  if (!moves_) return;
  write_to_terminal(
      fmt::format("\r\033[Kversion {} of {}: {} ...", event.version, versions_, subject(event)));
  drawn_ = true;
}

void Progress::phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) {
  if (!speaks_ || log::level() != log::Level::kVerbose) return;
  const auto moved = bytes == 0 || seconds <= 0
                         ? ""
                         : fmt::format(", {}, {:.2f} GB/s", format_bytes(bytes),
                                       static_cast<double>(bytes) / seconds / 1e9);
  log::detail(fmt::format("version {}: {}: {}{}", event.version, subject(event),
                          format_seconds(seconds), moved));
}

void Progress::clear() {
  if (drawn_) write_to_terminal("\r\033[K");
  drawn_ = false;
}

}  // namespace awex
