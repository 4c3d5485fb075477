#pragma once

#include <optional>
#include <string>

#include "cli/report_files.hpp"

namespace awex {

/// How a command has ended, and what its outputs hold.
struct CommandEnd {
  ExitCode code = ExitCode::kOk;
  std::optional<Error> error;
  OutputTexts files;
  std::string to_stdout;
};

/// Tells the error, if there is one, and writes every output. Returns the exit code: a report that
/// cannot be written is a failure, where there was none before.
[[nodiscard]] ExitCode publish(const CommandEnd& end, ReportFiles& files, const Patience& patience);

}  // namespace awex
