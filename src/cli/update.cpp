#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_update(CLI::App& root) {
  return add_job_command(
      root, Command::kUpdate,
      "Train, offload, transfer, verify, commit and resume: the whole cycle, --versions times");
}

}  // namespace awex
