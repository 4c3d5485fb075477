#pragma once

#include <string>

#include "cli/manual/program_words.hpp"

namespace awex {

/// The program's man page, section 1, as roff (man macros). `version` as in "0.1.0".
[[nodiscard]] std::string render_man_page(const ProgramWords& words, const std::string& version);

}  // namespace awex
