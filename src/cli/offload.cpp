#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_offload(CLI::App& root) {
  return add_job_command(
      root, Command::kOffload,
      "Move the trainer's optimizer state and weights to host memory, and prove "
      "that they are whole",
      "Examples:\n"
      "  mpirun -np 2 awex-colocate offload --model preset:tiny-dense --backend host\n"
      "  awex-colocate offload --job DIR --role trainer --tag optimizer");
}

}  // namespace awex
