#include "cli/manual/completions.hpp"

#include <fmt/format.h>

#include <string_view>

namespace awex {
namespace {

constexpr const char* kGenerated = "# Generated from the program's own help.\n";

std::string all_names(const CommandWords& command) {
  std::vector<std::string> names;
  for (const auto& option : command.options) {
    for (const auto& name : option.names()) names.push_back(name);
  }
  return fmt::format("{}", fmt::join(names, " "));
}

std::string all_commands(const ProgramWords& words) {
  std::vector<std::string> names;
  for (const auto& command : words.commands) names.push_back(command.name);
  return fmt::format("{}", fmt::join(names, " "));
}

/// `text` within single quotes of a shell in which a quote is written as `quote`; letters of
/// `special` get a backslash.
std::string quoted(const std::string& text, const char* quote, std::string_view special = "") {
  std::string out = "'";
  for (const char letter : text) {
    if (special.find(letter) != std::string_view::npos) out += '\\';
    out += letter == '\'' ? std::string(quote) : std::string(1, letter);
  }
  return out + "'";
}

/// What bash does after an option that wants a value.
std::string bash_value(const OptionWords& option) {
  const auto choices = option.choices();
  if (!choices.empty()) return fmt::format("_awex_colocate_words '{}'", fmt::join(choices, " "));
  return option.is_path() ? "" : "_awex_colocate_nothing";
}

std::string bash_values_of(const CommandWords& command) {
  std::string out;
  for (const auto& option : command.options) {
    if (option.value.empty() || option.value_may_miss || option.is_argument()) continue;
    for (const auto& name : option.names()) {
      out += fmt::format("    '{} {}') {}; return ;;\n", command.name, name,
                         bash_value(option).empty() ? ":" : bash_value(option));
    }
  }
  return out;
}

/// What bash completes a word with that follows no option.
std::string bash_words_of(const CommandWords& command) {
  std::string out = fmt::format("    {})\n", command.name);
  for (const auto& option : command.options) {
    if (!option.is_argument()) continue;
    const auto choices = option.choices();
    if (option.is_path()) out += "      if [[ $word != -* ]]; then return; fi\n";
    if (!choices.empty()) {
      out += fmt::format("      if [[ $word != -* ]]; then _awex_colocate_words '{}'; return; fi\n",
                         fmt::join(choices, " "));
    }
  }
  return out + fmt::format("      _awex_colocate_words '{}' ;;\n", all_names(command));
}

constexpr const char* kBashHead = R"(
_awex_colocate_nothing() { compopt +o default +o bashdefault 2>/dev/null; }

_awex_colocate_words() {
  _awex_colocate_nothing
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word")
}

_awex_colocate() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
  COMPREPLY=()
  # bash takes --option=value for three words.
  if [[ $word == '=' ]]; then
    word=
  elif [[ $before == '=' ]]; then
    before=${COMP_WORDS[COMP_CWORD - 2]}
  fi
)";

std::string zsh_quoted(const std::string& text, std::string_view special) {
  return quoted(text, "'\\''", special);
}

/// What zsh does where a value stands.
std::string zsh_value(const OptionWords& option) {
  const auto choices = option.choices();
  if (!choices.empty()) return fmt::format("({})", fmt::join(choices, " "));
  return option.is_path() ? "_files" : " ";
}

/// A specification as _arguments takes it, for each name of an option.
std::string zsh_option(const OptionWords& option) {
  constexpr std::string_view kSpecial = "[]:\\";
  const auto value = zsh_quoted(option.value, ":\\");
  if (option.is_argument()) return fmt::format(" \\\n        ':'{}':{}'", value, zsh_value(option));
  const auto names = option.names();
  std::string out;
  for (const auto& name : names) {
    out += fmt::format(" \\\n        '({})'{}'['{}']'", fmt::join(names, " "), name,
                       zsh_quoted(option.meaning, kSpecial));
    if (option.value.empty()) continue;
    out +=
        fmt::format("{}{}':{}'", option.value_may_miss ? "'::'" : "':'", value, zsh_value(option));
  }
  return out;
}

std::string zsh_options_of(const CommandWords& command) {
  std::string out = "_arguments -s";
  for (const auto& option : command.options) out += zsh_option(option);
  return out;
}

std::string fish_quoted(const std::string& text) { return quoted(text, "\\'", "\\"); }

/// What fish does where a value stands.
std::string fish_value(const OptionWords& option) {
  const auto choices = option.choices();
  if (!choices.empty()) return fmt::format(" -x -a '{}'", fmt::join(choices, " "));
  if (option.value.empty() || option.value_may_miss) return "";
  return option.is_path() ? " -r -F" : " -x";
}

/// `command` is the program's name in all lines, `where` the condition under which they hold.
std::string fish_options_of(const std::string& command, const std::string& where,
                            const std::vector<OptionWords>& options) {
  std::string out;
  for (const auto& option : options) {
    out += fmt::format("complete -c {} -n '{}'", command, where);
    for (const auto& name : option.short_names) out += " -s " + name;
    for (const auto& name : option.long_names) out += " -l " + name;
    const auto choices = option.choices();
    if (!option.is_argument()) {
      out += fish_value(option);
    } else {
      out += choices.empty() ? " -F" : fmt::format(" -a '{}'", fmt::join(choices, " "));
    }
    out += fmt::format(" -d {}\n", fish_quoted(option.meaning));
  }
  return out;
}

}  // namespace

std::string render_bash_completion(const ProgramWords& words) {
  std::string out = kGenerated + std::string(kBashHead);
  out += fmt::format(
      "  if ((COMP_CWORD == 1)); then _awex_colocate_words '{} {}'; return; fi\n"
      "  case \"$command $before\" in\n",
      all_commands(words), all_names(words.program));
  for (const auto& command : words.commands) out += bash_values_of(command);
  out += "  esac\n  case $command in\n";
  for (const auto& command : words.commands) out += bash_words_of(command);
  return out + fmt::format("  esac\n}}\ncomplete -o bashdefault -o default -F _awex_colocate {}\n",
                           words.program.name);
}

std::string render_zsh_completion(const ProgramWords& words) {
  const auto& name = words.program.name;
  auto out =
      fmt::format("#compdef {}\n{}\n_{}() {{\n  local -a commands=(", name, kGenerated, name);
  for (const auto& command : words.commands) {
    out += "\n    " + zsh_quoted(command.name + ":" + command.description, "\\");
  }
  out += "\n  )\n  if ((CURRENT == 2)); then\n    if [[ $PREFIX == -* ]]; then\n      " +
         zsh_options_of(words.program) +
         "\n    else\n      _describe command commands\n    fi\n    return\n  fi\n"
         "  local command=$words[2]\n  shift words\n  ((CURRENT--))\n  case $command in\n";
  for (const auto& command : words.commands) {
    out += fmt::format("    {})\n      {} ;;\n", command.name, zsh_options_of(command));
  }
  return out + fmt::format("  esac\n}}\n\n_{} \"$@\"\n", name);
}

std::string render_fish_completion(const ProgramWords& words) {
  const auto& name = words.program.name;
  auto out = fmt::format("{}complete -c {} -f\n", kGenerated, name);
  out += fish_options_of(name, "__fish_use_subcommand", words.program.options);
  for (const auto& command : words.commands) {
    out += fmt::format("complete -c {} -n '__fish_use_subcommand' -a {} -d {}\n", name,
                       command.name, fish_quoted(command.description));
    out += fish_options_of(name, "__fish_seen_subcommand_from " + command.name, command.options);
  }
  return out;
}

}  // namespace awex
