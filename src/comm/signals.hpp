#pragma once

#include <string>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {

/// What is left where the job's report belongs.
struct LastReport {
  std::string path;  ///< Empty for none.
  std::string text;
};

/// From now on SIGTERM, SIGINT and SIGHUP (not under nohup) are noted for `termination_signal`
/// instead of ending the process, however often they come (Slurm sends SIGTERM twice); only a
/// second SIGINT ends it, and says so. A reader that leaves gives an error instead of SIGPIPE.
void note_termination_signals();

/// From now on, until note_termination_signals, the same signals end the process with exit code
/// 1, after its words on stderr, if it has any, and its last report: in calls that do not hear of
/// them (MPI's start).
void end_at_once_on_signals(std::string words, LastReport report);

/// The first signal that has told this process to end, or 0.
[[nodiscard]] int termination_signal();
/// How many such signals have come.
[[nodiscard]] int termination_signals();

/// From now on SIGUSR1, with which a person asks for the status, is counted instead of ending the
/// process.
void note_status_signals();
/// How many have come.
[[nodiscard]] int status_signals();

/// From now on `wake` is called with `context` when a signal of the above has been noted, on
/// whatever thread the signal interrupts: it may do only what a signal's handler may. Null takes
/// it away, after which no call begins.
void wake_on_signals(void (*wake)(void* context), void* context);

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
