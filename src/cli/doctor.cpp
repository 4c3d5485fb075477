#include "doctor/examination.hpp"

#include <unistd.h>

#include <memory>

#include "cli/job_process.hpp"
#include "cli/launcher.hpp"
#include "cli/options.hpp"
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
  return render_doctor(report, {.color = use_color(arguments.talk.color, STDOUT_FILENO),
                                .width = text_width(STDOUT_FILENO)});
}

CommandEnd end_of(const DoctorReport& report, const DoctorArguments& arguments) {
  return {report.exit_code(), report.error, texts_of(report), report_text(report, arguments)};
}

/// What is left behind when MPI does not start.
std::string unstarted(const Error& error) {
  auto report = begin_doctor_report();
  report.error = error;
  return render_doctor_json(report);
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

/// The first of processes that MPI cannot make a job of examines itself; the others follow it.
ExitCode run_without_job(const DoctorArguments& arguments, const Error& why) {
  if (launched_rank().value_or(0) != 0) {
    let_rank_0_speak(ExitCode::kRuntime);
    return ExitCode::kRuntime;
  }
  ReportFiles files;
  files.open(arguments.json_path, "", texts_of(begin_doctor_report()),
             {arguments.options.timeout, {}});
  return publish(end_of(examine_without_job(arguments.options, why), arguments), files,
                 {arguments.options.timeout, {}});
}

ExitCode run_doctor(const DoctorArguments& arguments, int* argc, char*** argv) {
  const auto& talk = arguments.talk;
  speak(talk);
  if (const auto why = wrong_launch("doctor")) return run_without_job(arguments, *why);
  const JobOutputs outputs{arguments.json_path, "", arguments.options.timeout};
  Job job(argc, argv, outputs.timeout, when_mpi_does_not_start(outputs, unstarted));
  speak_as_rank(job, talk, outputs.timeout);
  ReportFiles files;
  auto report = examine_job(job, arguments, files);
  return end_job(
      job, report.error, [&] { return end_of(report, arguments); }, files, outputs);
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
