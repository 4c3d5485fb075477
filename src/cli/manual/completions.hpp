#pragma once

#include <string>

#include "cli/manual/program_words.hpp"

namespace awex {

// Scripts that complete commands, options and the words that options choose among. What is a path
// is completed as one.

[[nodiscard]] std::string render_bash_completion(const ProgramWords& words);
/// For a folder of zsh's $fpath, under the name _awex-colocate.
[[nodiscard]] std::string render_zsh_completion(const ProgramWords& words);
[[nodiscard]] std::string render_fish_completion(const ProgramWords& words);

}  // namespace awex
