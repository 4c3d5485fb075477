#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_transfer(CLI::App& root) {
  return add_job_command(
      root, Command::kTransfer,
      "Move the trainer's weights into the inference layout, and prove them",
      "Examples:\n"
      "  mpirun -np 2 awex-colocate transfer --model preset:tiny-dense --verify full\n"
      "  awex-colocate transfer --job DIR");
}

}  // namespace awex
