#include <unistd.h>

#include <chrono>
#include <ctime>
#include <memory>
#include <thread>

#include "cli/job_options.hpp"
#include "cli/progress.hpp"
#include "cli/render_json.hpp"
#include "cli/render_table.hpp"
#include "cli/report_files.hpp"
#include "cli/subcommand.hpp"
#include "cycle/session.hpp"

namespace awex {
namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[sizeof "2000-01-01T00:00:00Z"] = {};
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

/// What is known of a job before it has done anything.
Report unfinished_report(Command command, const JobOptions& options, const Job& job) {
  Report report;
  report.command = command_name(command);
  report.started_at = utc_now();
  report.trainer = options.run.trainer;
  report.inference = options.run.inference;
  report.ranks = job.size();
  report.nodes = job.nodes();
  report.offload = options.run.offload;
  return report;
}

/// Runs `step` on this rank; when it fails anywhere, all ranks throw that failure. Collective.
template <class Step>
void agreed_step(Job& job, Step step) {
  std::optional<Error> failure;
  try {
    step();
  } catch (const Error& error) {
    failure = error;
  }
  job.agree(failure ? &*failure : nullptr);
}

void require_two_ranks(Command command, const Job& job) {
  if (job.size() >= 2) return;
  throw request_error(
      fmt::format("{} needs a trainer and an inference rank, but the job has one rank",
                  command_name(command)),
      fmt::format("start it with mpirun: mpirun -np 2 awex-colocate {} ...",
                  command_name(command)));
}

Report do_work(Command command, const JobOptions& options, Job& job, ReportFiles& files) {
  auto unfinished = unfinished_report(command, options, job);
  Progress progress(job.rank() == 0, options.run.versions);
  try {
    agreed_step(job, [&] {
      require_two_ranks(command, job);
      if (job.rank() == 0) files.open(options.json_path, options.trace_path, unfinished);
    });
    return run_command(command, options.run, job, progress);
  } catch (const Error& error) {
    unfinished.error = error;
  } catch (const std::exception& error) {
    unfinished.error = runtime_error(error.what());
    unfinished.error->context() = job.context();
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

/// Ends a job whose ranks do not all know of the failure.
[[noreturn]] void abort_job(Job& job, const Error& error) {
  if (job.rank() != 0) {
    // Rank 0 speaks for all and then ends this process too. When it does not, it is gone or stuck.
    std::this_thread::sleep_for(std::chrono::seconds(2));
    log::error(error);
  }
  job.abort(error.code());
}

}  // namespace

ExitCode run_job(Command command, const JobOptions& options, int* argc, char*** argv) {
  Job job(argc, argv, options.run.timeout);
  log::configure(options.talk.level, fmt::format("rank {}", job.rank()),
                 use_color(options.talk.color, STDERR_FILENO));
  ReportFiles files;
  const auto report = do_work(command, options, job, files);
  auto code = report.error ? report.error->code() : ExitCode::kOk;
  if (job.rank() == 0) code = publish(report, options, files);
  if (report.error && !job.failure_is_agreed()) abort_job(job, *report.error);
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
