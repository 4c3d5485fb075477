#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "cli/job_options.hpp"
#include "cycle/observer.hpp"
#include "cycle/options.hpp"
#include "serve/resident.hpp"

namespace awex {

/// What `serve` is asked for.
struct ServeArguments {
  JobArguments job;
  std::string directory;  ///< That names the job.
  AttachOptions attach{};
};

/// Makes what is told of every phase of a resident job on this rank; `job` outlives it.
using MakeObserver = std::function<std::unique_ptr<CycleObserver>(const Job& job)>;

/// Adds the options of `serve` to its parser; `options` must outlive the parsing.
void add_serve_options(CLI::App& parser, ServeArguments& options);

/// After parsing: reads --config and checks what the parser cannot. Throws request errors.
void complete_serve_options(CLI::App& parser, ServeArguments& options);

/// This process's part of a resident job: the job's log, its reports and its end. `observe` is
/// called once the job is there; `start` tells how MPI may start. Collective. Does not return where
/// the job has to be aborted.
[[nodiscard]] ExitCode run_serve(const ServeArguments& arguments, const MakeObserver& observe,
                                 int* argc, char*** argv, Job::Start start = {});

}  // namespace awex
