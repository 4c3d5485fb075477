#pragma once

namespace awex {

/// The program: parses its arguments, runs the command that they name and returns the exit code.
/// Never throws.
[[nodiscard]] int run_command_line(int argc, char** argv);

}  // namespace awex
