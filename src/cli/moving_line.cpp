#include "cli/moving_line.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include "base/log.hpp"
#include "base/units.hpp"
#include "cli/options.hpp"

namespace awex {

MovingLine::MovingLine(bool speaks)
    : moves_(speaks && log::level() == log::Level::kNormal && log::format() == log::Format::kText &&
             is_terminal(STDERR_FILENO)) {}

void MovingLine::draw(const std::string& text) {
  if (!moves_) return;
  // A line that the terminal broke would stay when the next one is drawn.
  const size_t room = text_width(STDERR_FILENO) - 1;
  log::draw("\r\033[K" + text.substr(0, room));
  drawn_ = true;
}

void MovingLine::clear() {
  if (drawn_) log::draw("\r\033[K");
  drawn_ = false;
}

std::string phase_subject(const std::string& phase, const std::string& role,
                          const std::string& tag) {
  return tag.empty() ? fmt::format("{} {}", phase, role)
                     : fmt::format("{} {} {}", phase, role, tag);
}

std::string phase_outcome(double seconds, uint64_t bytes) {
  const auto moved = bytes == 0 || seconds <= 0
                         ? ""
                         : fmt::format(", {}, {:.2f} GB/s", format_bytes(bytes),
                                       static_cast<double>(bytes) / seconds / 1e9);
  return format_seconds(seconds) + moved;
}

}  // namespace awex
