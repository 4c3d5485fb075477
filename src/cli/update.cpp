#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_update(CLI::App& root) {
  return add_job_command(
      root, Command::kUpdate,
      "Train, offload, transfer, verify, commit and resume: the whole cycle, --versions times",
      "Examples:\n"
      "  mpirun -np 2 awex-colocate update --model preset:tiny-dense --backend host\n"
      "  mpirun -np 4 awex-colocate update --model DIR --trainer megatron:tp=2 \\\n"
      "      --inference sglang:tp=2 --versions 3 --json report.json --trace trace.json\n"
      "  awex-colocate update --job DIR --wait 10m");
}

}  // namespace awex
