#pragma once

#include <string>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {

/// From now on SIGTERM and SIGINT are noted for `termination_signal` instead of ending the process;
/// a second one ends it.
void note_termination_signals();

/// The signal that has told this process to end, or 0.
[[nodiscard]] int termination_signal();

/// Bounds calls that cannot be polled (MPI's start and end): when it lives longer than allowed, the
/// process says why on stderr and exits with `code`, upon which mpirun ends the job. Uses SIGALRM;
/// one at a time.
class Watchdog {
 public:
  Watchdog(Seconds allowed, ExitCode code, const std::string& message);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  Watchdog(Watchdog&&) = delete;
  Watchdog& operator=(Watchdog&&) = delete;
  ~Watchdog();
};

}  // namespace awex
