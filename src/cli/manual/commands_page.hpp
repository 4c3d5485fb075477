#pragma once

#include <string>

#include "cli/manual/program_words.hpp"

namespace awex {

/// docs/commands.md: every command with its options and examples. An example in which something
/// has to be filled in is marked so that tests of the documentation do not run it.
[[nodiscard]] std::string render_commands_page(const ProgramWords& words);

}  // namespace awex
