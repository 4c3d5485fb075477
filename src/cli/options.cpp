#include "cli/options.hpp"

#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <clocale>
#include <cstdlib>

#include "cli/launcher.hpp"
#include "cli/wrapped_text.hpp"

namespace awex {

uint64_t parse_count(std::string_view text) {
  uint64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  if (error != std::errc{} || stop != end || count == 0) {
    throw request_error(fmt::format("\"{}\" is not a count", text), "write a whole number from 1");
  }
  return count;
}

CLI::Option* add_value(CLI::App& command, const std::string& name, const std::string& value_name,
                       const std::string& help, const std::string& shown_default,
                       std::function<void(const std::string&)> set) {
  const bool needs_one = !value_name.starts_with('[');
  const auto set_and_name = [name, set = std::move(set), needs_one](const std::string& text) {
    try {
      set(text);
      if (text.empty() && needs_one) {
        throw request_error("its value is empty",
                            "is a variable of the shell not set? Give a value, or leave it out");
      }
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: {}", name, error.what()), error.hint());
    }
  };
  const auto full_help = shown_default.empty() ? help : fmt::format("{} [{}]", help, shown_default);
  return command.add_option_function<std::string>(name, set_and_name, full_help)
      ->type_name(value_name)
      ->expected(needs_one ? 1 : 0, 1);
}

Color parse_color(std::string_view text) {
  return parse_choice<Color>(
      text, {{"auto", Color::kAuto}, {"always", Color::kAlways}, {"never", Color::kNever}});
}

log::Format parse_log_format(std::string_view text) {
  return parse_choice<log::Format>(text,
                                   {{"text", log::Format::kText}, {"json", log::Format::kJson}});
}

void speak(const TalkOptions& talk, const std::string& who, std::optional<int> rank) {
  log::configure(talk.level, who, use_color(talk.color, STDERR_FILENO));
  log::set_format(talk.format, rank ? rank : launched_rank());
}

void add_talk_options(CLI::App& command, TalkOptions& talk) {
  auto* verbose = command.add_flag_callback(
      "-v,--verbose", [&talk] { talk.level = log::Level::kVerbose; },
      "Say on stderr what happens, a line for each phase");
  command
      .add_flag_callback(
          "-q,--quiet", [&talk] { talk.level = log::Level::kQuiet; },
          "Say nothing on stderr but warnings and errors")
      ->excludes(verbose);
  add_value(command, "--color", "auto|always|never", "When to colour; NO_COLOR is honoured", "auto",
            [&talk](const std::string& text) { talk.color = parse_color(text); });
  add_value(command, "--log-format", "text|json",
            "What is told on stderr: text, or json, an object a line (time, level, rank, host, "
            "event, message and what the event is about)",
            "text", [&talk](const std::string& text) { talk.format = parse_log_format(text); });
}

bool is_terminal(int fd) {
  // Open MPI gives ranks a pseudo terminal as stdout even when its own stdout is a file.
  if (fd == STDOUT_FILENO && launched_rank()) return false;
  return ::isatty(fd) == 1;
}

bool use_color(Color color, int fd) {
  switch (color) {
    case Color::kAlways:
      return true;
    case Color::kNever:
      return false;
    case Color::kAuto:
      break;
  }
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool refused = no_color != nullptr && *no_color != '\0';
  const bool dumb = term != nullptr && std::string_view(term) == "dumb";
  return !refused && !dumb && is_terminal(fd);
}

size_t text_width(int fd) {
  constexpr size_t kNarrowest = 40;
  constexpr size_t kWidest = 500;
  const char* variable = std::getenv("COLUMNS");
  const std::string_view text = variable == nullptr ? "" : variable;
  size_t columns = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), columns);
  const bool is_said =
      !text.empty() && error == std::errc{} && stop == text.data() + text.size() && columns > 0;
  if (is_said) return std::clamp(columns, kNarrowest, kWidest);
  winsize size{};
  if (!is_terminal(fd) || ::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
    return kTextWidth;
  }
  return std::clamp<size_t>(size.ws_col, kNarrowest, kWidest);
}

bool locale_is_utf8() {
  std::setlocale(LC_CTYPE, "");
  return std::string_view(::nl_langinfo(CODESET)) == "UTF-8";
}

}  // namespace awex
