#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "base/units.hpp"
#include "cli/job_options.hpp"
#include "serve/protocol.hpp"

namespace awex {

/// Options of a command whose --job names a resident job that is to do it.
struct ClientArguments {
  std::string directory;  ///< Empty: the command is started under mpirun and is the job.
  Seconds patience{0};    ///< How long to wait for a job to come to the directory.
  bool train = true;
  std::optional<decltype(Scope::tags)> tags;  ///< By Tag; absent: those of the command.
  bool cancel_on_disconnect = false;
};

/// What a client wants of a job, and where the answer goes.
struct ClientTask {
  std::string directory;
  Seconds patience{0};
  ClientRequest request;  ///< Its rendering is set by `run_client`.
  TalkOptions talk;
  std::string json_path;   ///< Empty: none; "-": stdout, instead of the table.
  std::string trace_path;  ///< Empty: none.
};

/// A command that only ever asks a resident job.
struct PlainClientArguments {
  ClientTask task;
  std::string config_path;  ///< Empty: none.
};

/// Adds --job, --config and what each command has; `options` must outlive the parsing.
void add_plain_client_options(CLI::App& parser, PlainClientArguments& options);
/// After parsing: reads --config. Throws request errors, also where --job is missing.
void complete_plain_client_options(CLI::App& parser, PlainClientArguments& options);
/// Adds --wait.
void add_wait(CLI::App& parser, Seconds& patience);

/// Adds the options that `command` has with --job alone, and --job; `client` must outlive the
/// parsing. Its other options (add_job_options) are there already.
void add_client_options(CLI::App& parser, Command command, ClientArguments& client);

/// After parsing: with --job refuses options of a job that mpirun starts, without it those of a
/// resident one. Throws request errors that name all of them.
void check_client_options(const CLI::App& parser, const ClientArguments& client);

/// What such a command asks for.
[[nodiscard]] ClientTask make_client_task(const ClientArguments& client, const JobArguments& job);

}  // namespace awex
