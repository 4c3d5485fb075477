#include "cli/subcommand.hpp"

namespace awex {

Subcommand add_resume(CLI::App& root) {
  return add_job_command(root, Command::kResume,
                         "Offload first, then bring everything back, and prove that it is whole");
}

}  // namespace awex
