#include "comm/ending.hpp"

#include <mpi.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "comm/signals.hpp"

namespace awex {
namespace {

// How long abort lets rank 0, or mpirun, end the job first.
constexpr Seconds kAbortGrace{1.5};
// What MPI_Abort itself may take.
constexpr Seconds kAbortAllowance{5};
// How long a rank lets those before it report and end the job: all of them, then each one more.
constexpr Seconds kReportGrace{3};
constexpr Seconds kNextReportGrace{0.2};
// How long a launcher may take to end the ranks of a job that one of them aborts. A job that Slurm
// cancels it does not end before its KillWait: then they end by themselves.
constexpr Seconds kLauncherGrace{0.3};
constexpr Seconds kListenInterval{0.1};
// Signals that come together are one: only later ones say that the job is being ended by others.
constexpr Seconds kSignalBurst{0.3};
// How long the launcher may take to read what this process has written.
constexpr Seconds kReadGrace{0.5};

/// Returns when the launcher has read what this process has written into its pipes: when it is told
/// to end the job first, it may read no more.
void let_launcher_read() {
  const Deadline limit(kReadGrace);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat status {};
    if (::fstat(fd, &status) != 0 || !S_ISFIFO(status.st_mode)) continue;
    int unread = 0;
    while (::ioctl(fd, FIONREAD, &unread) == 0 && unread > 0 && !limit.expired()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

}  // namespace

bool Ending::is_reporter() const {
  for (int lower = 0; lower < world_.rank(); ++lower) {
    if (!failures_.is_lost(lower)) return false;
  }
  return true;
}

void Ending::finish() {
  failures_.end_command();
  collectives_.barrier("the end of the job");
  failures_.stop_watching();  // from here on processes end, as they should
  world_.finalise();
}

/// Whether others end this job, rather than that it was told to end and reports it.
bool Ending::told_to_end_now() {
  if (signal_burst_ && !signal_burst_->expired()) known_signals_ = termination_signals();
  return termination_signals() > known_signals_;
}

/// Sleeps until mpirun ends this process, or, if it heeds that, another rank has reported: at most
/// `longest`. Returns whether that has come. Makes hardly any MPI call: peers may be gone.
bool Ending::others_end_it_within(Seconds longest, bool heeds_reports) {
  const Deadline deadline(longest);
  Deadline listen(kLauncherGrace);
  while (!told_to_end_now() && !deadline.expired()) {
    if (heeds_reports && listen.expired()) {
      failures_.listen();
      if (failures_.is_reported()) return true;
      listen = Deadline(kListenInterval);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return told_to_end_now();
}

void Ending::await_turn_to_report(ExitCode code) {
  if (termination_signal() != 0) signal_burst_.emplace(kSignalBurst);
  failures_.push();
  Seconds grace = kReportGrace;
  for (int earlier = 0; earlier < world_.rank(); ++earlier) {
    if (failures_.is_lost(earlier)) continue;
    if (others_end_it_within(grace, true)) std::_Exit(static_cast<int>(code));
    failures_.give_up_on(earlier);
    grace = kNextReportGrace;
  }
}

void Ending::abort(ExitCode code) {
  const Watchdog watchdog(
      kAbortGrace + kAbortAllowance, code,
      fmt::format("{}: MPI_Abort does not end the job", world_.describe(world_.rank())));
  // A rank that is lost cannot be told: MPI would make a connection, in vain, or fail.
  if (code != ExitCode::kPeerLost) failures_.tell_reported();
  failures_.push();
  const bool mpirun_comes_first = code == ExitCode::kPeerLost;
  const bool reporter_comes_first = !is_reporter();
  if (mpirun_comes_first || reporter_comes_first) {
    if (others_end_it_within(kAbortGrace, false)) std::_Exit(static_cast<int>(code));
  }
  let_launcher_read();
  MPI_Abort(world_.control(), static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

}  // namespace awex
