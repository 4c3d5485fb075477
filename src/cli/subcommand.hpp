#pragma once

#include <functional>

#include "base/error.hpp"
#include "cycle/options.hpp"

namespace CLI {
class App;
}

namespace awex {

struct JobArguments;

/// A command of the program. Options live as long as the functions.
struct Subcommand {
  CLI::App* parser = nullptr;
  /// After parsing, before any work: checks what the parser cannot. Throws request errors.
  std::function<void()> complete;
  /// Does the work and returns the exit code; throws Error for what it has not reported itself.
  std::function<ExitCode(int* argc, char*** argv)> run;
};

// One file each.
[[nodiscard]] Subcommand add_update(CLI::App& root);
[[nodiscard]] Subcommand add_offload(CLI::App& root);
[[nodiscard]] Subcommand add_transfer(CLI::App& root);
[[nodiscard]] Subcommand add_resume(CLI::App& root);
[[nodiscard]] Subcommand add_serve(CLI::App& root);
[[nodiscard]] Subcommand add_checkpoint(CLI::App& root);
[[nodiscard]] Subcommand add_digest(CLI::App& root);
[[nodiscard]] Subcommand add_plan(CLI::App& root);
[[nodiscard]] Subcommand add_status(CLI::App& root);
[[nodiscard]] Subcommand add_stop(CLI::App& root);
[[nodiscard]] Subcommand add_restore(CLI::App& root);
[[nodiscard]] Subcommand add_doctor(CLI::App& root);
[[nodiscard]] Subcommand add_help(CLI::App& root);

/// A command that runs under mpirun, or asks a resident job for the same: what the first four
/// share. `examples` stand below its options.
[[nodiscard]] Subcommand add_job_command(CLI::App& root, Command command, const char* description,
                                         const char* examples);

/// Runs such a command as this process's part of the job: report, outputs, the job's end.
/// Collective. Does not return where the job has to be aborted.
[[nodiscard]] ExitCode run_job(const JobArguments& options, int* argc, char*** argv);

}  // namespace awex
