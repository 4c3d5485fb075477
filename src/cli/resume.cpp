#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_resume(CLI::App& root) {
  return add_job_command(
      root, Command::kResume,
      "Offload first, then bring everything back, and prove that it is whole",
      "Examples:\n"
      "  mpirun -np 2 awex-colocate resume --model preset:tiny-dense --backend host\n"
      "  awex-colocate resume --job DIR");
}

}  // namespace awex
