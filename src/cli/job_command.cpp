#include <unistd.h>

#include <memory>

#include "cli/job_options.hpp"
#include "cli/progress.hpp"
#include "cli/render_json.hpp"
#include "cli/render_table.hpp"
#include "cli/report_files.hpp"
#include "cli/subcommand.hpp"
#include "cycle/session.hpp"

namespace awex {
namespace {

void require_two_ranks(Command command, const Job& job) {
  if (job.size() >= 2) return;
  throw request_error(
      fmt::format("{} needs a trainer and an inference rank, but the job has one rank",
                  command_name(command)),
      fmt::format("start it with mpirun: mpirun -np 2 awex-colocate {} ...",
                  command_name(command)));
}

Report do_work(Command command, const JobOptions& options, Job& job, ReportFiles& files) {
  auto unfinished = begin_report(command, options.run, job);
  Progress progress(job.rank() == 0, options.run.versions);
  try {
    job.do_and_agree([&] {
      require_two_ranks(command, job);
      if (job.rank() == 0) files.open(options.json_path, options.trace_path, unfinished);
    });
    return run_command(command, options.run, job, progress);
  } catch (const Error& error) {
    unfinished.error = job.failure_is_agreed() ? error : job.announce_failure(error);
  } catch (const std::exception& error) {
    unfinished.error = job.announce_failure(runtime_error(error.what()));
  }
  return unfinished;
}

/// What stdout carries; nothing where the job failed before it had anything to report.
std::string report_text(const Report& report, const JobOptions& options) {
  if (options.json_path == "-") return render_json(report);
  if (report.error && report.versions.empty()) return {};
  return render_table(
      report, {.unicode = locale_is_utf8(), .color = use_color(options.talk.color, STDOUT_FILENO)});
}

/// Rank 0: writes every output. Returns the exit code: a report that cannot be written is a
/// failure.
ExitCode publish(const Report& report, const JobOptions& options, ReportFiles& files) {
  auto code = report.exit_code();
  if (report.error) log::error(*report.error);
  const auto attempt = [&code](const auto& write) {
    try {
      write();
    } catch (const Error& error) {
      log::error(error);
      if (code == ExitCode::kOk) code = error.code();
    }
  };
  attempt([&] { files.write(report); });
  attempt([&] { write_all(STDOUT_FILENO, report_text(report, options), "stdout"); });
  return code;
}

}  // namespace

ExitCode run_job(Command command, const JobOptions& options, int* argc, char*** argv) {
  Job job(argc, argv, options.run.timeout);
  log::configure(options.talk.level, fmt::format("rank {}", job.rank()),
                 use_color(options.talk.color, STDERR_FILENO));
  ReportFiles files;
  const auto report = do_work(command, options, job, files);
  auto code = report.exit_code();
  if (job.rank() == 0) {
    code = publish(report, options, files);
  } else if (report.error && job.is_reporter()) {
    log::error(*report.error);  // rank 0 is lost
  }
  if (report.error && !job.failure_is_agreed()) job.abort(code);
  job.finish();
  return code;
}

Subcommand add_job_command(CLI::App& root, Command command, const char* description) {
  const auto options = std::make_shared<JobOptions>();
  auto* parser = root.add_subcommand(command_name(command), description);
  add_job_options(*parser, command, *options);
  return {parser, [parser, options] { complete_job_options(*parser, *options); },
          [command, options](int* argc, char*** argv) {
            return run_job(command, *options, argc, argv);
          }};
}

}  // namespace awex
