#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace awex {

/// An option or argument as --help tells of it.
struct OptionWords {
  std::vector<std::string> short_names;  ///< Without dashes; both are empty for an argument.
  std::vector<std::string> long_names;
  std::string value;  ///< What its value is, as "FILE|-" or "on|off"; empty for a switch.
  bool value_may_miss = false;
  std::string meaning;
  std::string group;  ///< The heading that it stands under.

  [[nodiscard]] bool is_argument() const { return short_names.empty() && long_names.empty(); }
  /// With their dashes, the short ones first.
  [[nodiscard]] std::vector<std::string> names() const;
  /// The words that its value may be, where it is a choice; empty otherwise. Placeholders are
  /// written in capitals and are none.
  [[nodiscard]] std::vector<std::string> choices() const;
  /// Whether its value is a path.
  [[nodiscard]] bool is_path() const;
};

/// A command, or the program itself.
struct CommandWords {
  std::string name;
  std::string description;
  std::string footer;  ///< Examples, and what else stands below the options.
  std::vector<OptionWords> options;

  /// The headings of the options, in their order.
  [[nodiscard]] std::vector<std::string> groups() const;
};

struct ProgramWords {
  CommandWords program;
  std::vector<CommandWords> commands;
};

/// A part of a footer: "Title: text", or "Title:" and lines that are kept as they are.
struct FooterPart {
  std::string title;
  std::vector<std::string> lines;
  bool is_verbatim = false;
};

[[nodiscard]] std::vector<FooterPart> footer_parts(const std::string& footer);

/// All that `root` would print as help: the program's and every command's.
[[nodiscard]] ProgramWords words_of(const CLI::App& root);

}  // namespace awex
