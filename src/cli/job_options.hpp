#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "cli/options.hpp"
#include "cycle/options.hpp"

namespace awex {

/// All options of a command that runs under mpirun.
struct JobArguments {
  Request request;
  std::string trainer = request.job.trainer.text();  ///< As typed, for `request`.
  std::string inference = request.job.inference.text();
  TalkOptions talk;
  std::string config_path;  ///< Empty: none.
  std::string json_path;    ///< Empty: none; "-": stdout, instead of the table.
  std::string trace_path;   ///< Empty: none.
};

/// Adds the options of `command` to its parser; `options` must outlive the parsing.
void add_job_options(CLI::App& parser, Command command, JobArguments& options);

/// After parsing: reads --config for what the command line left open, makes the specs of what was
/// typed, and checks what concerns more than one option. Throws request errors.
void complete_job_options(CLI::App& parser, JobArguments& options);

}  // namespace awex
