#include "comm/ending.hpp"

#include <mpi.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/launch.hpp"
#include "comm/signals.hpp"

namespace awex {
namespace {

// How long abort lets rank 0, or mpirun, end the job first.
constexpr Seconds kAbortGrace{1.5};
// What MPI_Abort itself may take.
constexpr Seconds kAbortAllowance{5};
// How long a rank lets those before it report the failure: all of them, then each one more.
constexpr Seconds kReportGrace{3};
constexpr Seconds kNextReportGrace{0.2};
// The same under mpirun once a signal has come and nobody tells that it reports: it kills all a
// second after its SIGTERM, and the ranks before this one may be gone, for Open MPI ends those
// whose last messages were to a rank that is. Slurm gives more time (KillWait, 30 s).
constexpr Seconds kHurriedReportGrace{0.6};
constexpr Seconds kHurriedNextReportGrace{0.03};
constexpr Seconds kListenInterval{0.01};
// How much later than its end what a rank has told before may come.
constexpr Seconds kLastWords{0.05};
// How long a launcher may take to end the ranks of a job that one of them aborts.
constexpr Seconds kLauncherGrace{0.3};
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

bool Ending::is_reporter() const { return count_lost_before() == world_.rank(); }

/// Of the ranks below this one.
int Ending::count_lost_before() const {
  int lost = 0;
  for (int lower = 0; lower < world_.rank(); ++lower) lost += failures_.is_lost(lower) ? 1 : 0;
  return lost;
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

/// Sleeps until mpirun ends this process: at most `longest`. Returns whether it does.
bool Ending::others_end_it_within(Seconds longest) {
  const Deadline deadline(longest);
  while (!told_to_end_now() && !deadline.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return told_to_end_now();
}

/// Sleeps until another rank has reported: as long as it may take. Returns whether one has.
bool Ending::others_report_within(Seconds patient, Seconds hurried) {
  const Deadline last(patient);
  const Deadline last_in_haste(hurried);
  const auto launcher = this_launch().launcher;
  const bool is_mpirun = launcher == Launcher::kMpirun || launcher == Launcher::kPmix;
  while (true) {
    failures_.listen();
    if (failures_.is_reported()) return true;
    const bool in_haste = is_mpirun && termination_signal() != 0 && !failures_.is_being_reported();
    if (last.expired() || (in_haste && last_in_haste.expired())) return false;
    std::this_thread::sleep_for(kListenInterval);
  }
}

void Ending::await_turn_to_report(ExitCode code) {
  if (termination_signal() != 0) signal_burst_.emplace(kSignalBurst);
  failures_.push();
  // One that is lost may have reported before, while this rank was busy.
  if (count_lost_before() > 0 && others_report_within(kLastWords, kLastWords)) {
    end_reported(code);
  }
  Seconds patient = kReportGrace;
  Seconds hurried = kHurriedReportGrace;
  for (int earlier = 0; earlier < world_.rank(); ++earlier) {
    if (failures_.is_lost(earlier)) continue;
    if (others_report_within(patient, hurried)) end_reported(code);
    failures_.give_up_on(earlier);
    patient = kNextReportGrace;
    hurried = kHurriedNextReportGrace;
  }
  failures_.tell_reporting();
}

/// Leaves it to the rank that has reported, and to the launcher, to end the job: as this one's end
/// would be the first, its code would be the job's. A job that Slurm cancels it does not end before
/// its KillWait.
void Ending::end_reported(ExitCode code) {
  const bool mpirun_comes_first = code == ExitCode::kPeerLost;
  static_cast<void>(others_end_it_within(mpirun_comes_first ? kAbortGrace : kLauncherGrace));
  std::_Exit(static_cast<int>(code));
}

void Ending::abort(ExitCode code) {
  const Watchdog watchdog(
      kAbortGrace + kAbortAllowance, code,
      fmt::format("{}: MPI_Abort does not end the job", world_.describe(world_.rank())));
  failures_.tell_reported();
  failures_.push();
  const bool mpirun_comes_first = code == ExitCode::kPeerLost;
  const bool reporter_comes_first = !is_reporter();
  if (mpirun_comes_first || reporter_comes_first) {
    if (others_end_it_within(kAbortGrace)) std::_Exit(static_cast<int>(code));
  }
  let_launcher_read();
  MPI_Abort(world_.control(), static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

}  // namespace awex
