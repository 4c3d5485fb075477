#include "cli/manual/program_words.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <sstream>

namespace awex {
namespace {

std::vector<std::string> alternatives(const std::string& value) {
  std::vector<std::string> parts;
  std::istringstream words(value);
  for (std::string word; std::getline(words, word, '|');) parts.push_back(word);
  return parts;
}

bool is_placeholder(const std::string& word) {
  return std::any_of(word.begin(), word.end(),
                     [](unsigned char letter) { return std::isupper(letter) != 0; });
}

OptionWords words_of(const CLI::Option& option) {
  OptionWords words;
  words.short_names = option.get_snames();
  words.long_names = option.get_lnames();
  if (option.get_type_size() != 0) words.value = option.get_type_name();
  words.value_may_miss = !words.value.empty() && option.get_items_expected_min() == 0;
  words.meaning = option.get_description();
  words.group = words.is_argument() ? "Arguments" : option.get_group();
  return words;
}

CommandWords words_of_command(const CLI::App& command) {
  CommandWords words{command.get_name(), command.get_description(), command.get_footer(), {}};
  for (const auto* option : command.get_options()) {
    if (!option->get_group().empty()) words.options.push_back(words_of(*option));
  }
  return words;
}

}  // namespace

std::vector<std::string> OptionWords::names() const {
  std::vector<std::string> all;
  for (const auto& name : short_names) all.push_back("-" + name);
  for (const auto& name : long_names) all.push_back("--" + name);
  return all;
}

std::vector<std::string> OptionWords::choices() const {
  auto words = alternatives(value);
  const bool is_choice =
      words.size() > 1 && std::none_of(words.begin(), words.end(), is_placeholder);
  return is_choice ? words : std::vector<std::string>{};
}

bool OptionWords::is_path() const {
  const auto words = alternatives(value);
  return std::any_of(words.begin(), words.end(),
                     [](const auto& word) { return word == "DIR" || word == "FILE"; });
}

std::vector<std::string> CommandWords::groups() const {
  std::vector<std::string> all;
  for (const auto& option : options) {
    if (std::find(all.begin(), all.end(), option.group) == all.end()) all.push_back(option.group);
  }
  return all;
}

std::vector<FooterPart> footer_parts(const std::string& footer) {
  std::vector<FooterPart> parts;
  std::istringstream lines(footer);
  bool begins = true;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) {
      begins = true;
    } else if (begins) {
      const auto colon = line.find(':');
      parts.push_back({line.substr(0, colon), {}, colon + 1 == line.size()});
      if (!parts.back().is_verbatim) parts.back().lines.push_back(line.substr(colon + 2));
      begins = false;
    } else {
      parts.back().lines.push_back(line);
    }
  }
  return parts;
}

ProgramWords words_of(const CLI::App& root) {
  ProgramWords words{words_of_command(root), {}};
  for (const auto* command : root.get_subcommands(nullptr)) {
    words.commands.push_back(words_of_command(*command));
  }
  return words;
}

}  // namespace awex
