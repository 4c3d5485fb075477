#include <unistd.h>

#include <memory>

#include "cli/client_command.hpp"
#include "cli/subcommand.hpp"

namespace awex {
namespace {

/// All memory is the ranks' own. What engines that attach have mapped outlives them there, and the
/// host memory that trainers' bytes have gone to.
ExitCode tell_what_is_left(const ClientTask& task, const JobRecord& record) {
  if (record.exit_code != ExitCode::kOk) {
    throw runtime_error(
        fmt::format("what the job at \"{}\" held is lost, and cannot be restored: it was {}, and "
                    "the memory of ranks goes with them; engines that had attached keep what they "
                    "had mapped, until they leave",
                    task.directory, describe(record)),
        "a trainer that had attached brings back what was away, or on its way, by awex_restore "
        "(engine.restore()); built-in roles begin anew with what --model holds");
  }
  write_all(STDOUT_FILENO,
            fmt::format("nothing to restore: it was {}; a trainer that had attached brings back "
                        "what was away by awex_restore (engine.restore())\n",
                        describe(record)),
            "stdout");
  return ExitCode::kOk;
}

ExitCode run_restore(const ClientTask& task) {
  begin_client(task);
  const auto record = read_job_record(task.directory);
  const auto end = record ? end_of_job(*record, task.directory) : std::nullopt;
  if (end) return tell_what_is_left(task, *end);
  return run_client(task);
}

}  // namespace

Subcommand add_restore(CLI::App& root) {
  const auto options = std::make_shared<PlainClientArguments>();
  options->task.request.errand = Errand::kRestore;
  auto* parser = root.add_subcommand(
      "restore", "Bring back the memory that a lost resident job has left, or say what is lost");
  parser->footer(
      "Examples:\n"
      "  awex-colocate restore --job DIR");
  add_plain_client_options(*parser, *options);
  return {parser, [parser, options] { complete_plain_client_options(*parser, *options); },
          [options](int* /*argc*/, char*** /*argv*/) { return run_restore(options->task); }};
}

}  // namespace awex
