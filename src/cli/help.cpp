#include <unistd.h>

#include <memory>

#include "cli/launcher.hpp"
#include "cli/options.hpp"
#include "cli/output_files.hpp"
#include "cli/subcommand.hpp"

namespace awex {
namespace {

/// The command whose help is wanted, or the program itself. Throws a request error with the nearest
/// name.
const CLI::App& asked_for(const CLI::App& root, const std::string& name) {
  // The parser takes a command's name for that command, wherever it stands.
  for (const auto* command : root.get_subcommands()) {
    if (command->get_name() != "help") return *command;
  }
  if (name.empty()) return root;
  std::vector<std::string> known;
  for (const auto* command : root.get_subcommands(nullptr)) {
    if (command->get_name() == name) return *command;  // of help itself
    known.push_back(command->get_name());
  }
  throw request_error(fmt::format("unknown command \"{}\"", name), suggestion(name, known));
}

/// As --help prints it. The parser would show the help of the command that was parsed, which is
/// help.
std::string help_of(const CLI::App& root, const CLI::App& command) {
  const bool is_root = &command == &root;
  const auto name = is_root ? root.get_name() : root.get_name() + " " + command.get_name();
  return command.get_formatter()->make_help(&command, name, CLI::AppFormatMode::Normal);
}

}  // namespace

Subcommand add_help(CLI::App& root) {
  const auto name = std::make_shared<std::string>();
  auto* parser = root.add_subcommand("help", "Show the help of the program, or of a command");
  parser->add_option("command", *name, "What to show the help of; the program's unless given")
      ->type_name("COMMAND");
  parser->footer("Examples:\n  awex-colocate help\n  awex-colocate help update");
  const auto run = [&root, name](int* /*argc*/, char*** /*argv*/) {
    if (launched_rank().value_or(0) == 0) {
      write_all(STDOUT_FILENO, help_of(root, asked_for(root, *name)), "stdout");
    }
    return ExitCode::kOk;
  };
  return {parser, [&root, name] { static_cast<void>(asked_for(root, *name)); }, run};
}

}  // namespace awex
