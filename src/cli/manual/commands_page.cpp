#include "cli/manual/commands_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace awex {
namespace {

/// A table's cell: a bar would end it.
std::string cell(const std::string& text) {
  std::string out;
  for (const char letter : text) out += letter == '|' ? "\\|" : std::string(1, letter);
  return out;
}

std::string code(const std::string& text) { return "`" + cell(text) + "`"; }

std::string option_row(const OptionWords& option) {
  std::vector<std::string> names;
  for (const auto& name : option.names()) names.push_back(code(name));
  auto head = fmt::format("{}", fmt::join(names, ", "));
  if (!option.value.empty()) head += (head.empty() ? "" : " ") + code(option.value);
  return fmt::format("| {} | {} |\n", head, cell(option.meaning));
}

/// Options under their headings; where there is one heading, it says nothing.
std::string options_of(const CommandWords& command) {
  std::string out;
  for (const auto& group : command.groups()) {
    if (command.groups().size() > 1) out += group + ":\n\n";
    out += "| option | meaning |\n| --- | --- |\n";
    for (const auto& option : command.options) {
      if (option.group == group) out += option_row(option);
    }
    out += "\n";
  }
  return out;
}

/// Commands, each with the lines that it goes on in.
std::vector<std::string> examples_of(const FooterPart& part) {
  std::vector<std::string> examples;
  bool goes_on = false;
  for (const auto& line : part.lines) {
    if (!goes_on) examples.emplace_back();
    examples.back() += line.substr(std::min<size_t>(2, line.size())) + "\n";
    goes_on = line.back() == '\\';
  }
  return examples;
}

std::string footer_of(const CommandWords& command) {
  std::string out;
  for (const auto& part : footer_parts(command.footer)) {
    if (!part.is_verbatim) {
      out += fmt::format("{}: {}\n\n", part.title, fmt::join(part.lines, " "));
      continue;
    }
    for (const auto& example : examples_of(part)) {
      // Of a resident job, or of a checkpoint of one's own.
      const bool is_to_fill = example.find("DIR") != std::string::npos;
      out += fmt::format("{}```sh\n{}```\n\n",
                         is_to_fill ? "<!-- not run: DIR is the reader's own -->\n" : "", example);
    }
  }
  return out;
}

}  // namespace

std::string render_commands_page(const ProgramWords& words) {
  const auto& program = words.program;
  auto out = fmt::format(
      "# Commands\n\n<!-- Generated from the program's own help: cp build/src/cli/commands.md "
      "docs/ "
      "-->\n\n{}\n\n`{} COMMAND [OPTIONS]`, one command a call. `{} help COMMAND` and `man {}` say "
      "the same.\n\n",
      program.description, program.name, program.name, program.name);
  out += "| command | does |\n| --- | --- |\n";
  for (const auto& command : words.commands) {
    out +=
        fmt::format("| [{}](#{}) | {} |\n", command.name, command.name, cell(command.description));
  }
  out += "\n" + options_of(program) + footer_of(program);
  for (const auto& command : words.commands) {
    std::string arguments;
    for (const auto& option : command.options) {
      if (option.is_argument()) arguments += " " + option.value;
    }
    out += fmt::format("## {}\n\n`{} {} [OPTIONS]{}`\n\n{}.\n\n", command.name, program.name,
                       command.name, arguments, command.description);
    out += options_of(command) + footer_of(command);
  }
  out.pop_back();  // the last line that is empty
  return out;
}

}  // namespace awex
