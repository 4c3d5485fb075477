#include "base/log.hpp"

#include <unistd.h>

#include <vector>

namespace awex::log {
namespace {

struct Settings {
  Level level = Level::kNormal;
  std::string who;
  bool color = false;
};

Settings& settings() {
  static Settings instance;
  return instance;
}

/// One write per line, so that lines of several ranks do not mix.
void write_line(const std::string& line) {
  const std::string text = line + "\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

std::string paint(const char* code, std::string_view text) {
  return settings().color ? fmt::format("\033[{}m{}\033[0m", code, text) : std::string(text);
}

/// "rank 3 (inference, host a, gpu 0): " as far as it is known; nobody for what all ranks together
/// found in a phase.
std::string origin(const ErrorContext& context) {
  const bool is_common = !context.rank && !context.phase.empty();
  if (is_common) return "";
  if (!context.rank) return settings().who.empty() ? "" : settings().who + ": ";
  std::vector<std::string> parts;
  if (!context.role.empty()) parts.push_back(context.role);
  if (!context.host.empty()) parts.push_back("host " + context.host);
  if (!context.gpu.empty()) parts.push_back("gpu " + context.gpu);
  const auto where = parts.empty() ? "" : fmt::format(" ({})", fmt::join(parts, ", "));
  return fmt::format("rank {}{}: ", *context.rank, where);
}

}  // namespace

void configure(Level level, std::string who, bool color) {
  settings() = {level, std::move(who), color};
}

Level level() { return settings().level; }

void note(std::string_view text) {
  if (settings().level != Level::kQuiet) write_line(std::string(text));
}

void detail(std::string_view text) {
  if (settings().level != Level::kVerbose) return;
  write_line(settings().who.empty() ? std::string(text)
                                    : fmt::format("{}: {}", settings().who, text));
}

void warning(std::string_view text) {
  write_line(fmt::format("{} {}", paint("33", "warning:"), text));
}

void error(const Error& error) {
  const auto& context = error.context();
  const auto phase = context.phase.empty() ? "" : fmt::format("in phase {}: ", context.phase);
  write_line(fmt::format("{} {}{}{}", paint("31", "error:"), origin(context), phase, error.what()));
  if (!error.hint().empty()) write_line(fmt::format("  hint: {}", error.hint()));
}

}  // namespace awex::log
