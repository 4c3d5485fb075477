#include "cli/help_text.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/wrapped_text.hpp"

namespace awex {
namespace {

/// The column that meanings begin in; they have room beside it.
size_t name_column(size_t width) {
  constexpr size_t kColumn = 30;
  constexpr size_t kLeastRoom = 28;
  return width >= kColumn + kLeastRoom ? kColumn : 8;
}

/// A name and what it means, on a line of its own where the name is long.
std::string entry(const std::string& name, const std::string& meaning, size_t width) {
  const size_t column = name_column(width);
  auto line = "  " + wrapped(name, width, 2);
  if (meaning.empty()) return line + "\n";
  if (line.size() >= column) line += "\n";
  const auto begun = line.back() == '\n' ? 0 : line.size();
  line += std::string(column - begun, ' ');
  return line + wrapped(meaning, width, column) + "\n";
}

/// The words of a command, an option together with its value.
std::vector<std::string> words_of_command(const std::string& command) {
  std::vector<std::string> words;
  std::istringstream text(command);
  bool takes_value = false;
  for (std::string word; text >> word;) {
    const bool is_option = word.front() == '-';
    if (takes_value && !is_option) {
      words.back() += " " + word;
    } else {
      words.push_back(word);
    }
    takes_value = is_option && word.find('=') == std::string::npos;
  }
  return words;
}

/// A command that a shell takes as it stands, broken where it is too wide.
std::string example(const std::string& command, size_t width) {
  std::string out = "  ";
  size_t used = 2;
  bool is_first = true;
  for (const auto& word : words_of_command(command)) {
    constexpr size_t kSign = 2;  // " \"
    if (!is_first && used + 1 + word.size() + kSign > width) {
      out += " \\\n      " + word;
      used = 6 + word.size();
    } else {
      out += (is_first ? "" : " ") + word;
      used += (is_first ? 0 : 1) + word.size();
    }
    is_first = false;
  }
  return out + "\n";
}

/// What stands below the options: titles, examples that begin with blanks, sentences.
std::string fitted_footer(const std::string& footer, size_t width) {
  std::istringstream text(footer);
  std::string out;
  std::string sentence;
  std::string command;
  const auto end_sentence = [&] {
    if (!sentence.empty()) out += wrapped(sentence, width, 0) + "\n";
    sentence.clear();
  };
  for (std::string line; std::getline(text, line);) {
    const bool goes_on = !line.empty() && line.back() == '\\';
    if (line.rfind("  ", 0) == 0) {
      end_sentence();
      command += line.substr(0, line.size() - (goes_on ? 1 : 0));
      if (goes_on) continue;
      out += example(command, width);
      command.clear();
    } else if (line.empty() || line.back() == ':') {
      end_sentence();
      out += line + "\n";
    } else {
      sentence += (sentence.empty() ? "" : " ") + line;
    }
  }
  end_sentence();
  return out;
}

/// CLI11's own breaks no lines, and tells of a switch what it excludes.
class HelpFormatter final : public CLI::Formatter {
 public:
  explicit HelpFormatter(size_t width) : width_(std::min(width, kWidestHelp)) {}

  [[nodiscard]] std::string make_option(const CLI::Option* option,
                                        bool is_positional) const override {
    const auto value = option->get_type_size() == 0 ? "" : " " + option->get_type_name();
    return entry(make_option_name(option, is_positional) + value, option->get_description(),
                 width_);
  }
  [[nodiscard]] std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), command->get_description(), width_);
  }
  [[nodiscard]] std::string make_description(const CLI::App* command) const override {
    return wrapped(command->get_description(), width_, 0) + "\n\n";
  }
  [[nodiscard]] std::string make_footer(const CLI::App* command) const override {
    return fitted_footer(CLI::Formatter::make_footer(command), width_);
  }
  [[nodiscard]] std::string make_help(const CLI::App* command, std::string name,
                                      CLI::AppFormatMode mode) const override {
    auto help = CLI::Formatter::make_help(command, std::move(name), mode);
    // Between groups CLI11 leaves two lines empty.
    for (size_t at = 0; (at = help.find("\n\n\n", at)) != std::string::npos;) help.erase(at, 1);
    return help;
  }

 private:
  size_t width_;
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> make_help_formatter(size_t width) {
  return std::make_shared<HelpFormatter>(width);
}

}  // namespace awex
