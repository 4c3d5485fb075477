#include "cli/manual/man_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace awex {
namespace {

/// A line of text as roff: no control line, and every hyphen the ASCII one, which can be copied.
std::string escaped(const std::string& line) {
  std::string out;
  if (!line.empty() && (line.front() == '.' || line.front() == '\'')) out += "\\&";
  for (const char letter : line) {
    if (letter == '\\') {
      out += "\\e";
    } else if (letter == '-') {
      out += "\\-";
    } else {
      out += letter;
    }
  }
  return out;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char letter : escaped(text))
    out += letter == '"' ? std::string("\\(dq") : std::string(1, letter);
  return out + "\"";
}

std::string in_capitals(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::toupper(letter)); });
  return text;
}

std::string option_entry(const OptionWords& option) {
  std::vector<std::string> names;
  for (const auto& name : option.names()) names.push_back("\\fB" + escaped(name) + "\\fR");
  auto head = fmt::format("{}", fmt::join(names, ", "));
  if (!option.value.empty()) {
    head += fmt::format("{}\\fI{}\\fR", names.empty() ? "" : " ", escaped(option.value));
  }
  return fmt::format(".TP\n{}\n{}\n", head, escaped(option.meaning));
}

/// Options under their headings; the first heading of all says nothing where it is CLI11's own.
std::string options_of(const CommandWords& command) {
  std::string out;
  for (const auto& group : command.groups()) {
    if (command.groups().size() > 1) out += fmt::format(".PP\n{}:\n", escaped(group));
    for (const auto& option : command.options) {
      if (option.group == group) out += option_entry(option);
    }
  }
  return out;
}

std::string footer_of(const CommandWords& command, bool with_sections) {
  std::string out;
  for (const auto& part : footer_parts(command.footer)) {
    out += with_sections ? fmt::format(".SH {}\n", quoted(in_capitals(part.title)))
                         : fmt::format(".PP\n{}:\n", escaped(part.title));
    if (part.is_verbatim) out += with_sections ? ".EX\n" : ".PP\n.EX\n";
    for (const auto& line : part.lines) out += escaped(line) + "\n";
    if (part.is_verbatim) out += ".EE\n";
  }
  return out;
}

std::string synopsis_of(const CommandWords& command) {
  auto line = fmt::format("\\fB{}\\fR [\\fIOPTIONS\\fR]", escaped(command.name));
  for (const auto& option : command.options) {
    if (option.is_argument()) line += fmt::format(" \\fI{}\\fR", escaped(option.value));
  }
  return line;
}

}  // namespace

std::string render_man_page(const ProgramWords& words, const std::string& version) {
  const auto& program = words.program;
  auto out = fmt::format(".\\\" Generated from the program's own help.\n.TH {} 1 \"\" {} {}\n",
                         quoted(in_capitals(program.name)), quoted(program.name + " " + version),
                         quoted("User Commands"));
  const auto first_sentence = program.description.substr(0, program.description.find(". "));
  out += fmt::format(".SH NAME\n{} \\- {}\n", escaped(program.name), escaped(first_sentence));
  out += fmt::format(".SH SYNOPSIS\n\\fB{}\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n",
                     escaped(program.name));
  out += fmt::format(".SH DESCRIPTION\n{}\n", escaped(program.description));
  out += ".SH OPTIONS\n" + options_of(program) + ".SH COMMANDS\n";
  for (const auto& command : words.commands) {
    out += fmt::format(".SS {}\n{}\n.PP\n{}\n", quoted(command.name), synopsis_of(command),
                       escaped(command.description));
    out += options_of(command) + footer_of(command, false);
  }
  return out + footer_of(program, true);
}

}  // namespace awex
