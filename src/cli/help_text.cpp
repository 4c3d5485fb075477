#include "cli/help_text.hpp"

#include <CLI/CLI.hpp>
#include <string>
#include <utility>

#include "cli/wrapped_text.hpp"

namespace awex {
namespace {

constexpr size_t kNameColumn = 30;

/// A name and what it means, on a line of its own where the name is long.
std::string entry(const std::string& name, const std::string& meaning) {
  auto line = "  " + name;
  if (meaning.empty()) return line + "\n";
  if (line.size() >= kNameColumn) line += "\n";
  const auto begun = line.back() == '\n' ? 0 : line.size();
  line += std::string(kNameColumn - begun, ' ');
  return line + wrapped(meaning, kTextWidth, kNameColumn) + "\n";
}

/// CLI11's own breaks no lines, and tells of a switch what it excludes.
class HelpFormatter final : public CLI::Formatter {
 public:
  [[nodiscard]] std::string make_option(const CLI::Option* option,
                                        bool is_positional) const override {
    const auto value = option->get_type_size() == 0 ? "" : " " + option->get_type_name();
    return entry(make_option_name(option, is_positional) + value, option->get_description());
  }
  [[nodiscard]] std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), command->get_description());
  }
  [[nodiscard]] std::string make_description(const CLI::App* command) const override {
    return wrapped(command->get_description(), kTextWidth, 0) + "\n\n";
  }
  [[nodiscard]] std::string make_help(const CLI::App* command, std::string name,
                                      CLI::AppFormatMode mode) const override {
    auto help = CLI::Formatter::make_help(command, std::move(name), mode);
    // Between groups CLI11 leaves two lines empty.
    for (size_t at = 0; (at = help.find("\n\n\n", at)) != std::string::npos;) help.erase(at, 1);
    return help;
  }
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> make_help_formatter() {
  return std::make_shared<HelpFormatter>();
}

}  // namespace awex
