#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_offload(CLI::App& root) {
  return add_job_command(root, Command::kOffload,
                         "Move the trainer's optimizer state and weights to host memory, and prove "
                         "that they are whole");
}

}  // namespace awex
