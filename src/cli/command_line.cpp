#include "cli/command_line.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <exception>
#include <string_view>
#include <vector>

#include "base/log.hpp"
#include "base/units.hpp"
#include "cli/launcher.hpp"
#include "cli/options.hpp"
#include "cli/program.hpp"
#include "cli/render_json.hpp"
#include "cli/report_files.hpp"
#include "cli/subcommand.hpp"

namespace awex {
namespace {

bool is_rank_0() { return launched_rank().value_or(0) == 0; }

/// Whether this process tells the user about wrong options at once: they are mostly wrong on every
/// rank alike, and rank 0 speaks for all. In MPMD launches each role has its own options.
bool speaks_first(const std::vector<std::string_view>& arguments) {
  if (is_rank_0()) return true;
  for (const auto argument : arguments) {
    if (argument.rfind("--role", 0) == 0) return true;
  }
  return false;
}

/// The command that was asked for, its options complete; null when CLI11 has answered (--help).
const Subcommand* parse(CLI::App& root, const std::vector<Subcommand>& commands, int argc,
                        char** argv, std::string& answer) {
  const Subcommand* chosen = nullptr;
  try {
    root.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    answer = root.help();
    return nullptr;
  } catch (const CLI::CallForVersion&) {
    answer = version_text() + "\n";
    return nullptr;
  } catch (const CLI::ArgumentMismatch& error) {
    throw request_error(error.what(), "give every option once, with one value");
  } catch (const CLI::ParseError& error) {
    throw request_error(error.what());
  }
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  refuse_unknown_arguments(root, arguments);
  for (const auto& command : commands) {
    if (command.parser->parsed()) chosen = &command;
  }
  if (chosen == nullptr) {
    throw request_error("no command is given", "awex-colocate --help lists the commands");
  }
  refuse_unknown_arguments(*chosen->parser, arguments);
  chosen->complete();
  return chosen;
}

/// What an option's value is on the command line, which may be wrong as a whole; empty if nothing.
std::string value_in(const std::vector<std::string_view>& arguments, const std::string& option) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == option && i + 1 < arguments.size()) return std::string(arguments[i + 1]);
    if (arguments[i].rfind(option + "=", 0) == 0) {
      return std::string(arguments[i].substr(option.size() + 1));
    }
  }
  return {};
}

/// Where the report of a request goes, also of a wrong one; empty if nowhere. For some commands
/// --json is a switch, for others nothing.
std::string json_path_in(const std::vector<std::string_view>& arguments,
                         const std::vector<Subcommand>& commands) {
  for (const auto& command : commands) {
    if (arguments.empty() || command.parser->get_name() != arguments.front()) continue;
    const auto* option = command.parser->get_option_no_throw("--json");
    if (option == nullptr || option->get_items_expected_max() == 0) return {};
    const auto path = value_in(arguments, "--json");
    return report_path(path.empty() ? text_in_config(value_in(arguments, "--config"), "json")
                                    : path);
  }
  return {};
}

/// Passes an option's value, from the command line or else from its --config, to `set`. One that is
/// missing, or wrong itself, leaves things as usual.
template <class Set>
void read_option(const std::vector<std::string_view>& arguments, const char* name, const Set& set) {
  auto text = value_in(arguments, std::string("--") + name);
  if (text.empty()) text = text_in_config(value_in(arguments, "--config"), name);
  try {
    if (!text.empty()) set(text);
  } catch (const Error&) {
    return;  // the parser tells
  }
}

/// How to tell of errors of options.
TalkOptions talk_in(const std::vector<std::string_view>& arguments) {
  TalkOptions talk;
  read_option(arguments, "color", [&](const std::string& text) { talk.color = parse_color(text); });
  read_option(arguments, "log-format",
              [&](const std::string& text) { talk.format = parse_log_format(text); });
  return talk;
}

/// How long readers of the report may take nothing.
Patience patience_in(const std::vector<std::string_view>& arguments) {
  Patience patience;
  read_option(arguments, "timeout",
              [&](const std::string& text) { patience.longest = parse_duration(text); });
  return patience;
}

/// Tells of options that are wrong, on stderr and, on rank 0, in the report: one of an earlier run
/// must not stay there.
void report_wrong_request(const Error& error, const std::vector<std::string_view>& arguments,
                          const std::vector<Subcommand>& commands) {
  log::error(error);
  if (!is_rank_0()) return;
  const auto path = json_path_in(arguments, commands);
  if (path.empty()) return;
  Report report;
  report.command = arguments.front();
  report.error = error;
  try {
    if (path == "-") {
      write_all(STDOUT_FILENO, render_json(report), "stdout");
    } else {
      ReportFiles files;
      files.open(path, "", report, patience_in(arguments));
      files.write(report);  // FIFOs and devices take nothing before
    }
  } catch (const Error& unwritable) {
    log::warning(unwritable.what());  // the request's error is the one that counts
  }
}

/// Where a shell has closed stdin, stdout or stderr, the next file or socket would take its number,
/// and what is meant for a person. Something that cannot be used takes it: writing still fails.
void occupy_closed_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
    [[maybe_unused]] const int taken =
        ::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

}  // namespace

int run_command_line(int argc, char** argv) {
  occupy_closed_streams();
  ::signal(SIGXFSZ, SIG_IGN);  // a file that reaches its limit is an error, not a silent end
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  bool is_speaker = speaks_first(arguments);
  speak(talk_in(arguments));
  CLI::App root;
  const auto commands = describe_program(root);
  const auto fail = [&](const Error& error) {
    if (!is_speaker) let_rank_0_speak(error.code());
    report_wrong_request(error, arguments, commands);
    return static_cast<int>(error.code());
  };
  try {
    std::string answer;
    const auto* command = parse(root, commands, argc, argv, answer);
    if (command == nullptr) {
      if (is_speaker) write_all(STDOUT_FILENO, answer, "stdout");
      return static_cast<int>(ExitCode::kOk);
    }
    is_speaker = true;
    return static_cast<int>(command->run(&argc, &argv));
  } catch (const Error& error) {
    return fail(error);
  } catch (const std::exception& error) {
    return fail(runtime_error(error.what()));
  }
}

}  // namespace awex
