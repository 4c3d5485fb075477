#include "cli/client_command.hpp"

#include <unistd.h>

#include <csignal>
#include <string>

#include "base/log.hpp"
#include "base/signal_name.hpp"
#include "cli/client_progress.hpp"
#include "cli/render_json.hpp"
#include "cli/render_status.hpp"
#include "comm/signals.hpp"
#include "serve/client.hpp"

namespace awex {
namespace {

/// How long readers of the report may take nothing, and where the user has left.
constexpr Seconds kReaderPatience{300};
constexpr Seconds kHurriedPatience{1};

/// What becomes of a request whose client has gone.
std::string fate_of(const ClientRequest& request, bool answered) {
  const auto* name = errand_name(request.errand);
  const auto* verb = request.cancel_on_disconnect ? "gives it up" : "finishes it";
  switch (request.errand) {
    case Errand::kStatus:
      return "nobody waits for the status any more";
    case Errand::kStop:
      return answered ? "the job ends all the same" : "the job ends if it has heard of it";
    case Errand::kUpdate:
    case Errand::kOffload:
    case Errand::kTransfer:
    case Errand::kResume:
    case Errand::kRestore:
      break;
  }
  return answered ? fmt::format("the job has the {}, and {}", name, verb)
                  : fmt::format("the job has not answered; if it has the {}, it {}", name, verb);
}

TextStyle style_of(const ClientTask& task) {
  return {.unicode = locale_is_utf8(),
          .color = use_color(task.talk.color, STDOUT_FILENO),
          .width = text_width(STDOUT_FILENO)};
}

Rendering wanted_rendering(const ClientTask& task) {
  const auto style = style_of(task);
  return {.table = task.json_path != "-",
          .unicode = style.unicode,
          .color = style.color,
          .columns = style.width,
          .json = !task.json_path.empty(),
          .trace = !task.trace_path.empty()};
}

Event ask(const ClientTask& task, LeaveMonitor& monitor, ClientProgress& progress) {
  auto request = task.request;
  request.rendering = wanted_rendering(task);
  const auto hear = [&](const Event& event) {
    monitor.job_has_answered();
    progress.hear(event);
  };
  return ask_job(task.directory, request, task.patience, hear, monitor);
}

CommandEnd end_of(const ClientTask& task, const Event& event, const ReportFiles& files) {
  if (!event.status.empty()) {
    return {event.exit_code, event.error, {event.status, ""}, status_text(task, event)};
  }
  const bool is_rendered = !event.json.empty() || !event.trace.empty() || !event.table.empty();
  if (event.error && !is_rendered) return failed_end(task, *event.error, files);
  return {event.exit_code,
          event.error,
          {event.json, event.trace},
          task.json_path == "-" ? event.json : event.table};
}

/// Whether the job that was asked to stop has done so, for somebody else who came first.
bool is_stopped(const ClientTask& task, const LeaveMonitor& monitor) {
  if (task.request.errand != Errand::kStop || !monitor.answered()) return false;
  const auto record = read_job_record(task.directory);
  return record && record->exit_code == ExitCode::kOk;
}

CommandEnd do_task(const ClientTask& task, ReportFiles& files) {
  ClientProgress progress(errand_name(task.request.errand));
  LeaveMonitor monitor(task.request, [&progress] { progress.tick(); });
  try {
    files.open(task.json_path, task.trace_path, client_report(task, not_heard_yet()),
               {kReaderPatience, [&monitor] { monitor.poll(); }});
    const auto event = ask(task, monitor, progress);
    return event.error && is_stopped(task, monitor) ? CommandEnd{} : end_of(task, event, files);
  } catch (const Error& error) {
    return failed_end(task, error, files);
  }
}

/// Its user may leave here, too.
ExitCode publish_to_user(const CommandEnd& end, ReportFiles& files) {
  if (termination_signal() != 0) return publish(end, files, {kHurriedPatience, {}});
  const auto poll = [] {
    if (const int signal = termination_signal(); signal != 0) {
      throw runtime_error(fmt::format("the output is cut off by {}", signal_name(signal)));
    }
  };
  return publish(end, files, {kReaderPatience, poll});
}

}  // namespace

void begin_client(const ClientTask& task) {
  note_termination_signals();
  speak(task.talk);
}

void LeaveMonitor::poll() {
  if (const int signal = termination_signal(); signal != 0) {
    throw Error(static_cast<ExitCode>(128 + signal),
                fmt::format("ended by {}: {}", signal_name(signal), fate_of(request_, answered_)),
                "awex-colocate status --job DIR tells what the job does");
  }
  if (tick_) tick_();
}

Report client_report(const ClientTask& task, const Error& error) {
  Report report;
  report.command = errand_name(task.request.errand);
  report.error = error;
  return report;
}

CommandEnd failed_end(const ClientTask& task, const Error& error, const ReportFiles& files) {
  const auto report = client_report(task, error);
  return {error.code(), error, files.render(report),
          task.json_path == "-" ? render_json(report) : ""};
}

Error not_heard_yet() {
  return runtime_error("the command has not ended",
                       "it still runs, or its client was killed: awex-colocate status --job DIR "
                       "tells what the job does");
}

std::string status_text(const ClientTask& task, const Event& event) {
  return task.json_path == "-" ? event.status : render_status(event.status, style_of(task));
}

ExitCode run_client(const ClientTask& task) {
  begin_client(task);
  ReportFiles files;
  const auto end = do_task(task, files);
  return publish_to_user(end, files);
}

}  // namespace awex
