#include "base/log.hpp"

#include "base/error_json.hpp"
#include "base/log_fact.hpp"
#include "base/utc_now.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <vector>

namespace awex::log {
namespace {

struct Settings {
  Level level = Level::kNormal;
  std::string who;
  bool color = false;
};

struct JsonSettings {
  Format format = Format::kText;
  std::optional<int> rank;
};

JsonSettings& json_settings() {
  static JsonSettings instance;
  return instance;
}

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  return ::gethostname(name.data(), HOST_NAME_MAX) == 0 ? name.data() : "";
}

const char* severity_name(Severity severity) {
  switch (severity) {
    case Severity::kDebug:
      return "debug";
    case Severity::kInfo:
      return "info";
    case Severity::kWarning:
      return "warning";
    case Severity::kError:
      return "error";
  }
  return "";
}

Settings& settings() {
  static Settings instance;
  return instance;
}

std::atomic<int> g_patience_ms{30'000};
std::atomic<uint64_t> g_lost_lines{0};  ///< Since stderr was last read.

/// Whether the text was taken, by a reader or by nobody at all; false where a reader takes nothing
/// for the patience.
bool write_patiently(std::string_view text, int patience_ms) {
  while (!text.empty()) {
    pollfd ready{STDERR_FILENO, POLLOUT, 0};
    const int found = ::poll(&ready, 1, patience_ms);
    if (found == 0) return false;
    if (found < 0 && errno == EINTR) continue;
    // What `poll` promises to take without waiting is PIPE_BUF.
    const auto count = ::write(STDERR_FILENO, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0) return true;
    text.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

std::string lost_lines_text(uint64_t lost) {
  const auto text = fmt::format("{} lines are lost: stderr was not read", lost);
  if (format() == Format::kText) return "warning: " + text;
  return json_line(Severity::kWarning, text, {"lost_lines", {{"lines", lost}}});
}

/// One write per line, so that lines of several ranks do not mix. A reader that has stopped is
/// waited for once, and told what it has missed when it goes on.
void write_line(const std::string& line) {
  const auto lost = g_lost_lines.load();
  const auto before = lost == 0 ? "" : lost_lines_text(lost) + "\n";
  if (write_patiently(before + line + "\n", lost == 0 ? g_patience_ms.load() : 0)) {
    g_lost_lines -= lost;
  } else {
    ++g_lost_lines;
  }
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

void set_format(Format format, std::optional<int> rank) { json_settings() = {format, rank}; }

Format format() { return json_settings().format; }

std::string json_line(Severity severity, const std::string& message, const Fact& fact) {
  static const std::string kHost = host_name();
  Json line = {{"time", utc_now_in_milliseconds()},
               {"level", severity_name(severity)},
               {"rank", value_or_null(json_settings().rank)},
               {"host", text_or_null(kHost)},
               {"event", fact.name},
               {"message", message}};
  line.update(fact.fields);
  return compact_text(line);
}

void set_patience(Seconds longest) {
  g_patience_ms = static_cast<int>(std::clamp(1000 * longest.count(), 0.0, 1e9));
}

Level level() { return settings().level; }

void draw(std::string_view text) { (void)write_patiently(text, 0); }

void note(const std::string& text, const Fact& fact) {
  if (settings().level == Level::kQuiet) return;
  write_line(format() == Format::kJson ? json_line(Severity::kInfo, text, fact) : text);
}

void note(std::string_view text) { note(std::string(text), {"note"}); }

void detail(const std::string& text, const Fact& fact) {
  if (format() == Format::kJson) return note(text, fact);
  detail(text);
}

void detail(std::string_view text) {
  if (settings().level != Level::kVerbose) return;
  if (format() == Format::kJson) {
    return write_line(json_line(Severity::kDebug, std::string(text), {"detail"}));
  }
  write_line(settings().who.empty() ? std::string(text)
                                    : fmt::format("{}: {}", settings().who, text));
}

void warning(std::string_view text) {
  if (format() == Format::kJson) {
    return write_line(json_line(Severity::kWarning, std::string(text), {"warning"}));
  }
  write_line(fmt::format("{} {}", paint("33", "warning:"), text));
}

void error(const Error& error) {
  if (format() == Format::kJson) {
    const Fact fact{"error", {{"error", error_json(error)}}};
    return write_line(json_line(Severity::kError, error.what(), fact));
  }
  const auto& context = error.context();
  const auto phase = context.phase.empty() ? "" : fmt::format("in phase {}: ", context.phase);
  write_line(fmt::format("{} {}{}{}", paint("31", "error:"), origin(context), phase, error.what()));
  if (!error.hint().empty()) write_line(fmt::format("  hint: {}", error.hint()));
}

}  // namespace awex::log
