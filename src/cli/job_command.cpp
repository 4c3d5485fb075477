#include <unistd.h>

#include <algorithm>
#include <memory>

#include "cli/client_command.hpp"
#include "cli/client_options.hpp"
#include "cli/job_options.hpp"
#include "cli/job_process.hpp"
#include "cli/launcher.hpp"
#include "cli/metrics.hpp"
#include "cli/progress.hpp"
#include "cli/render_json.hpp"
#include "cli/render_table.hpp"
#include "cli/render_trace.hpp"
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

Report do_work(const JobArguments& options, Job& job, ReportFiles& files, Metrics& metrics) {
  auto unfinished = begin_report(options.request, job);
  TerminalProgress progress(job.rank() == 0, options.request.command.versions, files);
  MeteredObserver observer(progress, metrics);
  try {
    job.do_and_agree([&] {
      if (job.rank() == 0) {
        metrics.open(unfinished);
        files.open(options.json_path, options.trace_path, unfinished,
                   {options.request.job.timeout, [&job] { job.poll(); }});
      }
      if (job.size() < 2) throw too_few_ranks(command_name(options.request.command.command));
    });
    warn_of_lost_outputs(job, options);
    return run_command(options.request, job, observer);
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
  return render_table(report, {.unicode = locale_is_utf8(),
                               .color = use_color(options.talk.color, STDOUT_FILENO),
                               .width = text_width(STDOUT_FILENO)});
}

/// What is left behind when MPI does not start.
std::string unstarted(const JobArguments& options, const Error& error) {
  Report report;
  report.command = command_name(options.request.command.command);
  report.error = error;
  return render_json(report);
}

}  // namespace

ExitCode run_job(const JobArguments& options, int* argc, char*** argv) {
  const auto* name = command_name(options.request.command.command);
  if (const auto refused = refuse_wrong_launch(name)) return *refused;
  const JobOutputs outputs{options.json_path, options.trace_path, options.request.job.timeout};
  const auto start = when_mpi_does_not_start(
      outputs, [&options](const Error& error) { return unstarted(options, error); });
  Job job(argc, argv, outputs.timeout, start);
  speak_as_rank(job, options.talk, outputs.timeout);
  ReportFiles files;
  Metrics metrics(options.metrics_path, job.rank() == 0);
  auto report = do_work(options, job, files, metrics);
  metrics.command_finished(report, report.error, /*ran=*/true);
  const auto render = [&]() -> CommandEnd {
    CommandEnd end{report.exit_code(), report.error, {}, {}};
    if (!writes_outputs(job, report.error)) return end;
    metrics.job_ended({}, /*writes=*/true);
    end.files = {render_json(report), render_trace(report)};
    end.to_stdout = report_text(report, options);
    return end;
  };
  return end_job(job, report.error, render, files, outputs);
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
