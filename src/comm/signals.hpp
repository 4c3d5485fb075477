#pragma once

#include <string>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {

/// From now on SIGTERM and SIGINT are noted for `termination_signal` instead of ending the process,
/// however often they come (Slurm sends SIGTERM twice); only a second SIGINT ends it, and says so
/// on stderr. A reader that leaves gives an error instead of SIGPIPE.
void note_termination_signals();

/// The first signal that has told this process to end, or 0.
[[nodiscard]] int termination_signal();
/// How many such signals have come.
[[nodiscard]] int termination_signals();

/// What a watchdog leaves where the job's report belongs.
struct LastReport {
  std::string path;  ///< Empty for none.
  std::string text;
};

/// Bounds calls that cannot be polled (MPI's start and end): when it lives longer than allowed, the
/// process says why on stderr, writes its last report and exits with `code`, upon which mpirun ends
/// the job. Uses SIGALRM; one at a time.
class Watchdog {
 public:
  Watchdog(Seconds allowed, ExitCode code, const std::string& message, LastReport report = {});
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  Watchdog(Watchdog&&) = delete;
  Watchdog& operator=(Watchdog&&) = delete;
  ~Watchdog();
};

}  // namespace awex
