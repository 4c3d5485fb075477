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
  std::string config_path;   ///< Still to be read; empty: none.
  std::string json_path;     ///< Empty: none; "-": stdout, instead of the table.
  std::string trace_path;    ///< Empty: none.
  std::string metrics_path;  ///< Empty: none.
};

/// The group of options that make a job, in --help. The others are of what it does, or of its
/// outputs: they are also of commands that a resident job is asked for.
inline constexpr const char* kUnderMpirun = "Under mpirun or srun (a job that does this and ends)";

/// Adds the options of `command` to its parser; `options` must outlive the parsing.
void add_job_options(CLI::App& parser, Command command, JobArguments& options);

/// Adds those of a resident job, whose commands come from its clients.
void add_resident_options(CLI::App& parser, JobArguments& options);

/// After parsing: reads --config, once, for what the command line left open. Throws request errors.
void read_config(CLI::App& parser, JobArguments& options);

/// Refuses outputs that cannot be, or would overwrite each other: a request error.
void check_outputs(const std::string& json_path, const std::string& trace_path,
                   const std::string& metrics_path = {});

/// After parsing: reads --config, makes the specs of what was typed, and checks what concerns more
/// than one option. Throws request errors.
void complete_job_options(CLI::App& parser, JobArguments& options);

/// Reads the model's config and makes the layouts, so that what is wrong with them is told alike
/// whether the command is started alone or by a launcher. Of a job only rank 0 looks: what others
/// do not find on their nodes they tell with their names, later. Throws request errors.
void check_model_of_rank_0(const JobOptions& options);

}  // namespace awex
