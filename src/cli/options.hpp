#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/nearest.hpp"

namespace awex {

/// What to write instead of `text`, which is none of `names`.
[[nodiscard]] std::string choice_hint(std::string_view text, const std::vector<std::string>& names);

/// The value named `text`; throws a request error with the nearest name or all of them.
template <class T>
[[nodiscard]] T parse_choice(std::string_view text,
                             std::initializer_list<std::pair<const char*, T>> choices) {
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names.emplace_back(name);
  }
  throw request_error(fmt::format("\"{}\" is none of {}", text, fmt::join(names, ", ")),
                      choice_hint(text, names));
}

/// A whole number of at least 1; throws a request error.
[[nodiscard]] uint64_t parse_count(std::string_view text);

/// Adds an option with one value to a command. `set` may throw request errors about the value: they
/// then name the option. An empty value is refused, unless `value_name` is in brackets: then the
/// value may be left out. `shown_default` is for --help alone; empty for none.
CLI::Option* add_value(CLI::App& command, const std::string& name, const std::string& value_name,
                       const std::string& help, const std::string& shown_default,
                       std::function<void(const std::string&)> set);

/// When to colour.
enum class Color : uint8_t { kAuto, kAlways, kNever };

/// "auto", "always" or "never"; throws a request error.
[[nodiscard]] Color parse_color(std::string_view text);

/// What every command is told about its lines on stderr.
struct TalkOptions {
  log::Level level = log::Level::kNormal;
  Color color = Color::kAuto;
  log::Format format = log::Format::kText;
};

/// "text" or "json"; throws a request error.
[[nodiscard]] log::Format parse_log_format(std::string_view text);

/// From now on this process's lines on stderr are as `talk` says; `who` begins them ("rank 3"),
/// `rank` is in JSON lines, the launcher's where it is not known yet.
void speak(const TalkOptions& talk, const std::string& who = {}, std::optional<int> rank = {});

/// Adds -v, -q, --color and --log-format; `talk` must outlive the parsing.
void add_talk_options(CLI::App& command, TalkOptions& talk);

/// Whether to colour a stream. For kAuto: it is a terminal, TERM is not "dumb" and NO_COLOR is
/// unset or empty (no-color.org). A launcher's ranks do not see the real stdout: never a terminal.
[[nodiscard]] bool use_color(Color color, int fd);

/// Whether `fd` is a terminal that a person looks at.
[[nodiscard]] bool is_terminal(int fd);

/// How many columns text for a person has on `fd`: what COLUMNS says, else what its terminal has,
/// else kTextWidth (in a log, a pipe, a file). From 40 to 500.
[[nodiscard]] size_t text_width(int fd);

/// Whether the user's locale can show block characters.
[[nodiscard]] bool locale_is_utf8();

/// Sets a command's options that the command line has left open from a JSON object whose keys are
/// long option names without dashes. An option that excludes one that is given is not open. Throws
/// request errors that name file and key, and for an unknown key the nearest one.
void apply_config(CLI::App& command, const std::string& file);

/// The text that a config file has for an option ("json"); empty if none, also where the file
/// cannot be used. Of use when another option is wrong.
[[nodiscard]] std::string text_in_config(const std::string& file, const char* key) noexcept;

/// Throws a request error for the first argument that no option or command took, with what its user
/// may have meant. `arguments` are all of the command line, where they are known.
void refuse_unknown_arguments(const CLI::App& command,
                              const std::vector<std::string_view>& arguments = {});

}  // namespace awex
