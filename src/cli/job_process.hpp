#pragma once

#include <functional>
#include <string>

#include "cli/options.hpp"
#include "cli/publish.hpp"
#include "cycle/options.hpp"

/// What a process that is a rank of a job does at its begin and its end, whatever the job is for.

namespace awex {

/// Where a job's outputs go, and how long their readers may take.
struct JobOutputs {
  std::string json_path;  ///< Empty: none; "-": stdout.
  std::string trace_path;
  Seconds timeout{300};  ///< Of every wait of the job.
};

/// What rank 0 leaves behind when MPI does not start: `render` makes the JSON report of that error.
[[nodiscard]] Job::Start when_mpi_does_not_start(
    const JobOutputs& outputs, const std::function<std::string(const Error&)>& render);

/// From now on lines on stderr begin with the rank.
void speak_as_rank(const Job& job, const TalkOptions& talk, Seconds timeout);

/// Whether this rank writes a job's outputs: rank 0, or another where that is lost.
[[nodiscard]] bool writes_outputs(const Job& job, const std::optional<Error>& error);

/// Ends this process's part of the job; who writes_outputs writes them. `error` is the job's, and
/// is set where not all ranks come to the end; `render` makes the outputs with it, which only their
/// writer needs. Returns the exit code. Collective. Does not return where the job has to be
/// aborted.
[[nodiscard]] ExitCode end_job(Job& job, std::optional<Error>& error,
                               const std::function<CommandEnd()>& render, ReportFiles& files,
                               const JobOutputs& outputs);

}  // namespace awex
