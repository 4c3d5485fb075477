#pragma once

#include "base/units.hpp"
#include "cli/client_options.hpp"

namespace awex {

/// Shows a job's status every `interval`: on a terminal in the place of what stood there, else when
/// something has changed. Ends when the job ends, with its exit code, and with kOk when the user
/// leaves by SIGINT.
[[nodiscard]] ExitCode watch_status(const ClientTask& task, Seconds interval);

}  // namespace awex
