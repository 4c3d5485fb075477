#include <chrono>
#include <memory>
#include <thread>

#include "base/log.hpp"
#include "cli/client_command.hpp"
#include "cli/subcommand.hpp"

namespace awex {
namespace {

/// Until the job that `asked` tells of has ended, or another has come: its directory is free then.
void await_end(const ClientTask& task, const JobRecord& asked) {
  LeaveMonitor leave(task.request);
  leave.job_has_answered();
  while (true) {
    const auto record = read_again(asked, task.directory);
    if (!record) return;
    if (const auto end = end_of_job(*record, task.directory)) {
      return log::note(fmt::format("the job has ended: it was {}", describe(*end)));
    }
    leave.poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

ExitCode run_stop(const ClientTask& task) {
  const auto record = read_job_record(task.directory);
  const auto code = run_client(task);
  if (code == ExitCode::kOk && record) await_end(task, *record);
  return code;
}

}  // namespace

Subcommand add_stop(CLI::App& root) {
  const auto options = std::make_shared<PlainClientArguments>();
  options->task.request.errand = Errand::kStop;
  auto* parser =
      root.add_subcommand("stop", "End a resident job in order, and wait until it has ended");
  parser->footer("Examples:\n  awex-colocate stop --job DIR");
  add_plain_client_options(*parser, *options);
  return {parser, [parser, options] { complete_plain_client_options(*parser, *options); },
          [options](int* /*argc*/, char*** /*argv*/) { return run_stop(options->task); }};
}

}  // namespace awex
