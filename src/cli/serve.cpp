#include "cli/serve.hpp"

#include <unistd.h>

#include <algorithm>
#include <memory>

#include "base/utc_now.hpp"
#include "cli/job_process.hpp"
#include "cli/launcher.hpp"
#include "cli/metrics.hpp"
#include "cli/progress.hpp"
#include "cli/render_json.hpp"
#include "cli/render_status.hpp"
#include "cli/render_table.hpp"
#include "cli/render_trace.hpp"
#include "cli/report_files.hpp"
#include "cli/subcommand.hpp"
#include "cycle/session.hpp"
#include "serve/resident.hpp"

namespace awex {
namespace {

/// A line of the job's log, on stdout, with the time. What nobody reads is lost.
void write_log(const std::string& line, const log::Fact& fact) {
  constexpr Seconds kPatience{1};
  const bool has_failed = fact.fields.value("exit_code", 0) != 0;
  const auto text =
      log::format() == log::Format::kJson
          ? log::json_line(has_failed ? log::Severity::kError : log::Severity::kInfo, line, fact)
          : fmt::format("{} {}", utc_now(), line);
  try {
    write_all(STDOUT_FILENO, text + "\n", "stdout", {kPatience, {}});
  } catch (const Error& error) {
    log::warning(error.what());
  }
}

std::string table_for(const Report& report, const Rendering& rendering) {
  return render_table(
      report, {.unicode = rendering.unicode, .color = rendering.color, .width = rendering.columns});
}

void show_status(const JobStatus& status) {
  const auto json = render_status_json(status);
  log::note(render_status(json, {.unicode = locale_is_utf8()}),
            {"status", {{"status", Json::parse(json)}}});
}

/// Tells on stderr how far the start has come, and of every phase whom it is to be told;
/// commands are told by the job's log.
class StartProgress final : public CycleObserver {
 public:
  explicit StartProgress(bool speaks) : speaks_(speaks) {}
  void phase_started(const PhaseEvent& /*event*/) override {}
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) override {
    if (!speaks_) return;
    log::detail(fmt::format("{}: {}", phase_subject(event.phase, event.role, event.tag),
                            phase_outcome(seconds, bytes)),
                phase_fact(event, seconds, bytes));
  }
  void loading(uint64_t done_bytes, uint64_t all_bytes) override {
    if (speaks_) loading_.tell(done_bytes, all_bytes);
  }

 private:
  bool speaks_;
  LoadingLines loading_;
};

void attach_roles(const std::string& text, AttachOptions& attach) {
  attach.trainer = attach.inference = false;
  for (size_t begin = 0; begin <= text.size();) {
    const auto comma = std::min(text.find(',', begin), text.size());
    const auto role =
        parse_choice<Role>(text.substr(begin, comma - begin),
                           {{"trainer", Role::kTrainer}, {"inference", Role::kInference}});
    (role == Role::kTrainer ? attach.trainer : attach.inference) = true;
    begin = comma + 1;
  }
}

void add_attach_options(CLI::App& parser, AttachOptions& attach) {
  add_value(parser, "--attach", "ROLES",
            "Roles that engines of their own processes play: trainer, inference or "
            "trainer,inference; they attach with the library, to --job",
            "none: both are built in",
            [&attach](const std::string& text) { attach_roles(text, attach); });
  add_value(parser, "--attach-timeout", "DURATION",
            "How long engines may take to attach, and to load and declare their tensors", "10m",
            [&attach](const std::string& text) { attach.patience = parse_duration(text); });
  add_value(
      parser, "--admission", "digest|off",
      "Whether what an attached inference engine has loaded is proven to be what the trainer "
      "has, before the first transfer",
      "digest", [&attach](const std::string& text) {
        attach.admits_by_digest = parse_choice<bool>(text, {{"digest", true}, {"off", false}});
      });
}

ExitCode code_of(const Resident::End& end) { return end.error ? end.error->code() : ExitCode::kOk; }

/// Ends a job in which a rank is lost: one of the others reports it.
[[noreturn]] void break_off(Job& job, const Error& error, Metrics& metrics) {
  job.await_turn_to_report(error.code());
  if (job.is_reporter()) {
    log::error(error);
    metrics.job_ended(error, /*writes=*/true);
  }
  job.abort(error.code());
}

ExitCode serve(const ServeOptions& options, Job& job, CycleObserver& observer, Metrics& metrics) {
  const ResidentVoice voice{write_log,
                            table_for,
                            render_json,
                            render_trace,
                            [&](const Report& report, const std::optional<Error>& error, bool ran) {
                              metrics.command_finished(report, error, ran);
                            },
                            [&](const JobStatus& status) { metrics.status_changed(status); },
                            show_status};
  MeteredObserver metered(observer, metrics);
  Resident resident(options, job, voice, metered);
  const auto end = resident.serve();
  if (!end.in_order) break_off(job, *end.error, metrics);
  metrics.job_ended({}, job.rank() == 0);
  if (end.error && job.rank() == 0) log::error(*end.error);
  job.finish();
  return code_of(end);
}

}  // namespace

void add_serve_options(CLI::App& parser, ServeArguments& options) {
  add_value(parser, "--job", "DIR", "Directory that names the job, for its clients; required", "",
            [&options](const std::string& text) { options.directory = text; });
  add_resident_options(parser, options.job);
  add_attach_options(parser, options.attach);
}

void complete_serve_options(CLI::App& parser, ServeArguments& options) {
  complete_job_options(parser, options.job);
  if (options.directory.empty()) {
    throw request_error("--job is missing",
                        "name a directory that clients of the job find it by: --job DIR");
  }
  check_model_of_rank_0(options.job.request.job);
}

ExitCode run_serve(const ServeArguments& arguments, const MakeObserver& observe, int* argc,
                   char*** argv, Job::Start start) {
  if (const auto refused = refuse_wrong_launch("serve")) return *refused;
  const ServeOptions options{arguments.directory, arguments.job.request.job, arguments.attach};
  start.launched_rank = launched_rank();
  Job job(argc, argv, options.job.timeout, start);
  speak_as_rank(job, arguments.job.talk, options.job.timeout);
  const auto observer = observe(job);
  Metrics metrics(arguments.job.metrics_path, job.rank() == 0);
  job.do_and_agree([&] {
    metrics.open(begin_report(arguments.job.request, job));
    if (job.size() < 2) throw too_few_ranks("serve");
  });
  return serve(options, job, *observer, metrics);
}

Subcommand add_serve(CLI::App& root) {
  const auto options = std::make_shared<ServeArguments>();
  auto* parser = root.add_subcommand(
      "serve", "Keep the ranks of a job alive, for commands with --job from other shells");
  parser->footer(
      "Examples:\n"
      "  mpirun -np 2 awex-colocate serve --job DIR --model preset:tiny-dense &\n"
      "  awex-colocate update --job DIR --wait 10m\n"
      "  awex-colocate stop --job DIR");
  add_serve_options(*parser, *options);
  const auto observe = [](const Job& job) {
    return std::make_unique<StartProgress>(job.rank() == 0);
  };
  return {parser, [parser, options] { complete_serve_options(*parser, *options); },
          [options, observe](int* argc, char*** argv) {
            return run_serve(*options, observe, argc, argv);
          }};
}

}  // namespace awex
