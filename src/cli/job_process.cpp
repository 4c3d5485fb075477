#include "cli/job_process.hpp"

#include <unistd.h>

#include <algorithm>

#include "base/log.hpp"
#include "cli/launcher.hpp"

namespace awex {
namespace {

ExitCode end_with(const Job& job, const CommandEnd& end, ReportFiles& files,
                  const JobOutputs& outputs) {
  if (!writes_outputs(job, end.error)) return end.code;
  if (job.rank() != 0) {
    try {
      files.open(outputs.json_path, outputs.trace_path, end.files, {outputs.timeout, {}});
    } catch (const Error& error) {
      log::warning(error.what());  // the report's own error is the one that counts
    }
  }
  return publish(end, files, {outputs.timeout, {}});
}

/// Ends a job whose failure, which `error` is, not all ranks have agreed on. What it writes it
/// renders when its turn comes: before, it is not known to be its writer.
[[noreturn]] void break_off(Job& job, const Error& error, const std::function<CommandEnd()>& render,
                            ReportFiles& files, const JobOutputs& outputs) {
  job.await_turn_to_report(error.code());
  job.abort(end_with(job, render(), files, outputs));
}

}  // namespace

Job::Start when_mpi_does_not_start(const JobOutputs& outputs,
                                   const std::function<std::string(const Error&)>& render) {
  Job::Start start;
  start.launched_rank = launched_rank();
  const int rank = start.launched_rank.value_or(0);
  if (rank != 0 || outputs.json_path.empty() || outputs.json_path == "-") return start;
  const Seconds allowed = outputs.timeout + start.allowance;
  Error error(ExitCode::kDeadline,
              fmt::format("rank {} has not got through MPI's start after {}", rank,
                          format_seconds(allowed.count())),
              "some rank of the job has not started, or MPI's network setup is wrong");
  error.context().rank = start.launched_rank;
  start.report = {outputs.json_path, render(error)};
  Error ended(ExitCode::kRuntime, "told to end by a signal while MPI starts");
  ended.context().rank = start.launched_rank;
  start.report_when_ended = {outputs.json_path, render(ended)};
  return start;
}

void speak_as_rank(const Job& job, const TalkOptions& talk, Seconds timeout) {
  speak(talk, fmt::format("rank {}", job.rank()), job.rank());
  // Others wait for a rank that tells something: that must be short against the timeout.
  log::set_patience(std::min(Seconds(10), timeout / 4));
}

bool writes_outputs(const Job& job, const std::optional<Error>& error) {
  return job.rank() == 0 || (error && job.is_reporter());
}

ExitCode end_job(Job& job, std::optional<Error>& error, const std::function<CommandEnd()>& render,
                 ReportFiles& files, const JobOutputs& outputs) {
  try {
    if (error && !job.failure_is_agreed()) break_off(job, *error, render, files, outputs);
    const auto code = end_with(job, render(), files, outputs);
    job.finish();
    return code;
  } catch (const Error& late) {
    // The work was done, but not all ranks came to its end.
    error = job.announce_failure(late);
    break_off(job, *error, render, files, outputs);
  }
}

}  // namespace awex
