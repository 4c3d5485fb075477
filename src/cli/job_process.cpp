#include "cli/job_process.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <optional>

#include "base/json_values.hpp"
#include "base/log.hpp"
#include "cli/launcher.hpp"

namespace awex {
namespace {

Json member(const Json& report, const char* name) {
  return report.is_object() && report.contains(name) ? report[name] : Json();
}

/// When the job of a report began.
std::optional<std::time_t> start_of(const Json& report) {
  const auto text = member(report, "started_at");
  std::tm time{};
  if (!text.is_string()) return std::nullopt;
  if (::strptime(text.get<std::string>().c_str(), "%Y-%m-%dT%H:%M:%SZ", &time) == nullptr) {
    return std::nullopt;
  }
  return ::timegm(&time);
}

/// Whether the file at `path` tells already that the job of the report `mine` has lost ranks. Where
/// a network is cut, the ranks on either side lose the others: what rank 0 has written, on a disk
/// that both reach, counts.
bool is_told_already(const std::string& path, const std::string& mine) {
  constexpr std::time_t kSameStartS = 10;  // hosts' clocks differ, and so do ranks' beginnings
  std::ifstream file(path);
  const auto theirs = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  const auto code = member(theirs, "exit_code");
  if (code != static_cast<int>(ExitCode::kDeadline) &&
      code != static_cast<int>(ExitCode::kPeerLost)) {
    return false;
  }
  const auto start = start_of(theirs);
  const auto own_start = start_of(Json::parse(mine, nullptr, /*allow_exceptions=*/false));
  return start && own_start && std::abs(*start - *own_start) <= kSameStartS;
}

ExitCode end_with(const Job& job, const CommandEnd& end, ReportFiles& files,
                  const JobOutputs& outputs) {
  if (!writes_outputs(job, end.error)) return end.code;
  if (job.rank() != 0) {
    if (is_told_already(outputs.json_path, end.files.json)) return end.code;
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
