#include <unistd.h>

#include <algorithm>
#include <memory>

#include "cli/client_command.hpp"
#include "cli/client_options.hpp"
#include "cli/job_options.hpp"
#include "cli/launcher.hpp"
#include "cli/progress.hpp"
#include "cli/publish.hpp"
#include "cli/render_json.hpp"
#include "cli/render_table.hpp"
#include "cli/report_files.hpp"
#include "cli/subcommand.hpp"
#include "cycle/session.hpp"

namespace awex {
namespace {

/// Rank 0 alone writes files; in launches of several programs it may be another rank that was
/// asked.
void warn_of_lost_outputs(Job& job, const JobArguments& options) {
  const bool wants_files = !options.json_path.empty() || !options.trace_path.empty();
  const auto all = job.all_gather_value(wants_files ? 1 : 0, "who writes files");
  if (job.rank() != 0 || all[0] != 0) return;
  const auto other = std::find(all.begin(), all.end(), 1);
  if (other == all.end()) return;
  log::warning(
      fmt::format("--json and --trace of rank {} are ignored: rank 0 writes the files, give "
                  "it these options",
                  other - all.begin()));
}

Report do_work(const JobArguments& options, Job& job, ReportFiles& files) {
  auto unfinished = begin_report(options.request, job);
  TerminalProgress progress(job.rank() == 0, options.request.command.versions, files);
  try {
    job.do_and_agree([&] {
      if (job.rank() == 0) {
        files.open(options.json_path, options.trace_path, unfinished,
                   {options.request.job.timeout, [&job] { job.poll(); }});
      }
      if (job.size() < 2) throw too_few_ranks(command_name(options.request.command.command));
    });
    warn_of_lost_outputs(job, options);
    return run_command(options.request, job, progress);
  } catch (const Error& error) {
    unfinished.error = job.failure_is_agreed() ? error : job.announce_failure(error);
  } catch (const std::exception& error) {
    unfinished.error = job.announce_failure(runtime_error(error.what()));
  }
  return unfinished;
}

/// What stdout carries; nothing where the job failed before it had anything to report.
std::string report_text(const Report& report, const JobArguments& options) {
  if (options.json_path == "-") return render_json(report);
  if (report.error && report.versions.empty()) return {};
  return render_table(
      report, {.unicode = locale_is_utf8(), .color = use_color(options.talk.color, STDOUT_FILENO)});
}

ExitCode publish_report(const Report& report, const JobArguments& options, ReportFiles& files) {
  return publish(
      {report.exit_code(), report.error, files.render(report), report_text(report, options)}, files,
      {options.request.job.timeout, {}});
}

/// The rank that reports writes every output: rank 0, or another where that is lost. Returns the
/// exit code.
ExitCode end_with(const Report& report, const JobArguments& options, const Job& job,
                  ReportFiles& files) {
  if (job.rank() == 0) return publish_report(report, options, files);
  if (!report.error || !job.is_reporter()) return report.exit_code();
  try {
    files.open(options.json_path, options.trace_path, report, {options.request.job.timeout, {}});
  } catch (const Error& error) {
    log::warning(error.what());  // the report's own error is the one that counts
  }
  return publish_report(report, options, files);
}

/// Ends a job whose failure not all ranks have agreed on.
[[noreturn]] void break_off(const Report& report, const JobArguments& options, Job& job,
                            ReportFiles& files) {
  job.await_turn_to_report(report.exit_code());
  job.abort(end_with(report, options, job, files));
}

/// What rank 0 leaves behind when MPI does not start.
Job::Start when_mpi_does_not_start(const JobArguments& options) {
  Job::Start start;
  start.launched_rank = launched_rank();
  const bool writes = start.launched_rank.value_or(0) == 0;
  if (!writes || options.json_path.empty() || options.json_path == "-") return start;
  Report report;
  report.command = command_name(options.request.command.command);
  const Seconds allowed = options.request.job.timeout + start.allowance;
  report.error =
      Error(ExitCode::kDeadline,
            fmt::format("rank {} has not got through MPI's start after {}",
                        start.launched_rank.value_or(0), format_seconds(allowed.count())),
            "some rank of the job has not started, or MPI's network setup is wrong");
  report.error->context().rank = start.launched_rank;
  start.report = {options.json_path, render_json(report)};
  return start;
}

}  // namespace

ExitCode run_job(const JobArguments& options, int* argc, char*** argv) {
  const auto* name = command_name(options.request.command.command);
  if (const auto refused = refuse_wrong_launch(name)) return *refused;
  Job job(argc, argv, options.request.job.timeout, when_mpi_does_not_start(options));
  log::configure(options.talk.level, fmt::format("rank {}", job.rank()),
                 use_color(options.talk.color, STDERR_FILENO));
  // Others wait for a rank that tells something: that must be short against the timeout.
  log::set_patience(std::min(Seconds(10), options.request.job.timeout / 4));
  ReportFiles files;
  auto report = do_work(options, job, files);
  try {
    if (report.error && !job.failure_is_agreed()) break_off(report, options, job, files);
    const auto code = end_with(report, options, job, files);
    job.finish();
    return code;
  } catch (const Error& error) {
    // The work was done, but not all ranks came to its end.
    report.error = job.announce_failure(error);
    break_off(report, options, job, files);
  }
}

namespace {

/// A command's options, whether it is a job or asks one.
struct CommandArguments {
  JobArguments job;
  ClientArguments client;
};

void complete_options(CLI::App& parser, const std::shared_ptr<CommandArguments>& options) {
  auto& [job, client] = *options;
  read_config(parser, job);
  check_client_options(parser, client);
  if (!client.directory.empty()) return check_outputs(job.json_path, job.trace_path);
  complete_job_options(parser, job);
  check_model_of_rank_0(job.request.job);
}

}  // namespace

Subcommand add_job_command(CLI::App& root, Command command, const char* description,
                           const char* examples) {
  const auto options = std::make_shared<CommandArguments>();
  auto* parser = root.add_subcommand(command_name(command), description);
  parser->footer(examples);
  add_job_options(*parser, command, options->job);
  add_client_options(*parser, command, options->client);
  const auto run = [options](int* argc, char*** argv) {
    return options->client.directory.empty()
               ? run_job(options->job, argc, argv)
               : run_client(make_client_task(options->client, options->job));
  };
  return {parser, [parser, options] { complete_options(*parser, options); }, run};
}

}  // namespace awex
