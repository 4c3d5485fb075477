#pragma once

#include <string>
#include <vector>

#include "cli/subcommand.hpp"

namespace awex {

/// What --version prints, without a newline.
[[nodiscard]] std::string version_text();

/// Describes the whole program to a parser: its options, its commands, its help. What --help, the
/// man page and the completions are made of. Options live as long as what is returned.
[[nodiscard]] std::vector<Subcommand> describe_program(CLI::App& root);

}  // namespace awex
