#include "doctor/examination.hpp"

#include <unistd.h>

#include <memory>

#include "cli/launcher.hpp"
#include "cli/options.hpp"
#include "cli/publish.hpp"
#include "cli/render_doctor.hpp"
#include "cli/subcommand.hpp"

namespace awex {
namespace {

struct DoctorArguments {
  DoctorOptions options;
  TalkOptions talk;
  std::string config_path;  ///< Empty: none.
  std::string json_path;    ///< Empty: none; "-": stdout, instead of the table.
};

void add_doctor_options(CLI::App& parser, DoctorArguments& arguments) {
  DoctorOptions& options = arguments.options;
  using Choice = std::optional<BackendKind>;
  add_value(parser, "--backend", "auto|cuda|host",
            "What the update will run on; checks that it does not need are "
            "waived",
            "auto", [&options](const std::string& text) {
              options.backend = parse_choice<Choice>(
                  text,
                  {{"auto", Choice{}}, {"cuda", BackendKind::kCuda}, {"host", BackendKind::kHost}});
            });
  add_value(parser, "--role", "trainer|inference", "Role of these ranks, for MPMD launches",
            "first half of each node's ranks trainer, second half inference",
            [&options](const std::string& text) {
              options.role = parse_choice<Role>(
                  text, {{"trainer", Role::kTrainer}, {"inference", Role::kInference}});
            });
  parser.add_flag("--share-gpu", options.share_gpu,
                  "Let several ranks of a role be on one GPU, for tests");
  add_value(parser, "--timeout", "DURATION",
            "How long a single wait may take: 30s, 500ms, 5m; a check that hangs has failed after "
            "a quarter of it",
            fmt::format("{:.0f}s", options.timeout.count()),
            [&options](const std::string& text) { options.timeout = parse_duration(text); });
  add_value(parser, "--config", "FILE",
            "Options as a JSON object, keys without dashes; the command line wins", "",
            [&arguments](const std::string& text) { arguments.config_path = text; });
  add_value(parser, "--json", "FILE|-",
            "Write the findings of every rank as JSON; - writes them to stdout instead of the "
            "table",
            "", [&arguments](const std::string& text) { arguments.json_path = report_path(text); });
  add_talk_options(parser, arguments.talk);
}

OutputTexts texts_of(const DoctorReport& report) { return {render_doctor_json(report), {}}; }

/// What stdout carries; nothing where the job failed before anything was found.
std::string report_text(const DoctorReport& report, const DoctorArguments& arguments) {
  if (arguments.json_path == "-") return render_doctor_json(report);
  if (report.error) return {};
  return render_doctor(report, {.color = use_color(arguments.talk.color, STDOUT_FILENO)});
}

ExitCode publish_report(const DoctorReport& report, const DoctorArguments& arguments,
                        ReportFiles& files) {
  return publish(
      {report.exit_code(), report.error, texts_of(report), report_text(report, arguments)}, files,
      {arguments.options.timeout, {}});
}

DoctorReport examine_job(Job& job, const DoctorArguments& arguments, ReportFiles& files) {
  auto unfinished = begin_doctor_report();
  try {
    job.do_and_agree([&] {
      if (job.rank() != 0) return;
      files.open(arguments.json_path, "", texts_of(unfinished),
                 {arguments.options.timeout, [&job] { job.poll(); }});
    });
    return examine(job, arguments.options);
  } catch (const Error& error) {
    unfinished.error = job.failure_is_agreed() ? error : job.announce_failure(error);
  } catch (const std::exception& error) {
    unfinished.error = job.announce_failure(runtime_error(error.what()));
  }
  return unfinished;
}

/// The rank that reports writes every output. Returns the exit code.
ExitCode end_with(const DoctorReport& report, const DoctorArguments& arguments, const Job& job,
                  ReportFiles& files) {
  if (job.rank() == 0) return publish_report(report, arguments, files);
  if (!report.error || !job.is_reporter()) return report.exit_code();
  try {
    files.open(arguments.json_path, "", texts_of(report), {arguments.options.timeout, {}});
  } catch (const Error& error) {
    log::warning(error.what());  // the report's own error is the one that counts
  }
  return publish_report(report, arguments, files);
}

[[noreturn]] void break_off(const DoctorReport& report, const DoctorArguments& arguments, Job& job,
                            ReportFiles& files) {
  job.await_turn_to_report(report.exit_code());
  job.abort(end_with(report, arguments, job, files));
}

/// What rank 0 leaves behind when MPI does not start.
Job::Start when_mpi_does_not_start(const DoctorArguments& arguments) {
  Job::Start start;
  start.launched_rank = launched_rank();
  const bool writes = start.launched_rank.value_or(0) == 0;
  if (!writes || arguments.json_path.empty() || arguments.json_path == "-") return start;
  auto report = begin_doctor_report();
  const Seconds allowed = arguments.options.timeout + start.allowance;
  report.error =
      Error(ExitCode::kDeadline,
            fmt::format("rank {} has not got through MPI's start after {}",
                        start.launched_rank.value_or(0), format_seconds(allowed.count())),
            "some rank of the job has not started, or MPI's network setup is wrong");
  report.error->context().rank = start.launched_rank;
  start.report = {arguments.json_path, render_doctor_json(report)};
  return start;
}

/// The first of processes that MPI cannot make a job of examines itself; the others follow it.
ExitCode run_without_job(const DoctorArguments& arguments, const Error& why) {
  if (launched_rank().value_or(0) != 0) {
    let_rank_0_speak();
    return ExitCode::kRuntime;
  }
  ReportFiles files;
  files.open(arguments.json_path, "", texts_of(begin_doctor_report()),
             {arguments.options.timeout, {}});
  return publish_report(examine_without_job(arguments.options, why), arguments, files);
}

ExitCode run_doctor(const DoctorArguments& arguments, int* argc, char*** argv) {
  const auto& talk = arguments.talk;
  log::configure(talk.level, "", use_color(talk.color, STDERR_FILENO));
  if (const auto why = wrong_launch("doctor")) return run_without_job(arguments, *why);
  Job job(argc, argv, arguments.options.timeout, when_mpi_does_not_start(arguments));
  log::configure(talk.level, fmt::format("rank {}", job.rank()),
                 use_color(talk.color, STDERR_FILENO));
  // Others wait for a rank that tells something: that must be short against the timeout.
  log::set_patience(std::min(Seconds(10), arguments.options.timeout / 4));
  ReportFiles files;
  auto report = examine_job(job, arguments, files);
  try {
    if (report.error && !job.failure_is_agreed()) break_off(report, arguments, job, files);
    const auto code = end_with(report, arguments, job, files);
    job.finish();
    return code;
  } catch (const Error& error) {
    // The examination is done, but not all ranks came to its end.
    report.error = job.announce_failure(error);
    break_off(report, arguments, job, files);
  }
}

}  // namespace

Subcommand add_doctor(CLI::App& root) {
  const auto arguments = std::make_shared<DoctorArguments>();
  auto* parser = root.add_subcommand(
      "doctor",
      "Check everything that an update needs on these machines: alone, or as it will run");
  parser->footer(
      "Examples:\n"
      "  awex-colocate doctor\n"
      "  mpirun -np 2 awex-colocate doctor --backend host");
  add_doctor_options(*parser, *arguments);
  const auto complete = [parser, arguments] {
    if (!arguments->config_path.empty()) apply_config(*parser, arguments->config_path);
  };
  return {parser, complete,
          [arguments](int* argc, char*** argv) { return run_doctor(*arguments, argc, argv); }};
}

}  // namespace awex
