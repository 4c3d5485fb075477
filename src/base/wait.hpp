#pragma once

#include <sched.h>

#include <chrono>
#include <concepts>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {

/// For moments of the monotonic clock.
[[nodiscard]] inline std::chrono::steady_clock::duration as_duration(Seconds seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(seconds);
}

/// A moment on the monotonic clock after which waiting is an error.
class Deadline {
 public:
  explicit Deadline(Seconds from_now)
      : allowed_(from_now), end_(Clock::now() + as_duration(from_now)) {}

  [[nodiscard]] bool expired() const { return Clock::now() >= end_; }
  /// The time that was allowed when the deadline was made, for messages.
  [[nodiscard]] Seconds allowed() const { return allowed_; }

 private:
  using Clock = std::chrono::steady_clock;
  Seconds allowed_;
  Clock::time_point end_;
};

/// Measures elapsed wall time from its making.
class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return Seconds(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

/// How far long local work of this process has come.
struct WorkProgress {
  std::string what;  ///< "loading the weights".
  std::string file;  ///< That it is at; may be empty.
  uint64_t done_bytes = 0;
  uint64_t all_bytes = 0;  ///< 0 when unknown.
  bool ended = false;
};

/// What every wait loop asks while it waits: `poll` may throw, when a peer died, another rank
/// failed, or this process was told to end.
class WaitMonitor {
 public:
  WaitMonitor() = default;
  WaitMonitor(const WaitMonitor&) = delete;
  WaitMonitor& operator=(const WaitMonitor&) = delete;
  WaitMonitor(WaitMonitor&&) = delete;
  WaitMonitor& operator=(WaitMonitor&&) = delete;
  virtual ~WaitMonitor() = default;
  virtual void poll() = 0;
  /// Told of long local work when it begins, moves on (base/work_progress.hpp) and ends.
  virtual void progressed(const WorkProgress& /*progress*/) {}
  /// Whether a wait must end. A job's monitor counts the deadline's time from the last progress of
  /// anyone's long work on, when that came later.
  [[nodiscard]] virtual bool overdue(const Deadline& deadline) const { return deadline.expired(); }
};

/// A monitor for single processes, which have nobody to watch.
class NoMonitor final : public WaitMonitor {
 public:
  void poll() override {}
};

/// Gives the processor to others, the longer the wait the longer: ranks may share cores.
inline void pause_in_wait(uint64_t spins) {
  if (spins < 2000) {
    ::sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(spins < 20000 ? 20 : 200));
  }
}

/// What one can do about a deadline that has passed.
inline constexpr const char* kDeadlineHint =
    "look at what that process does (gdb -p PID, nvidia-smi); a longer --timeout helps only when "
    "it is slow";

/// Returns when `done()` is true. Throws what `done` or the monitor throw, and Error(kDeadline)
/// "<what> is not done after <time>" when the monitor holds it overdue; `what` is asked then.
template <class Predicate, std::invocable What>
void wait_until(Predicate done, What what, const Deadline& deadline, WaitMonitor& monitor,
                const char* hint = kDeadlineHint) {
  for (uint64_t spins = 0; !done(); ++spins) {
    monitor.poll();
    if (monitor.overdue(deadline)) {
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} is not done after {}", what(),
                              format_seconds(deadline.allowed().count())),
                  hint);
    }
    pause_in_wait(spins);
  }
}

/// The same, with a text that the wait does not change.
template <class Predicate>
void wait_until(Predicate done, const std::string& what, const Deadline& deadline,
                WaitMonitor& monitor) {
  wait_until(
      std::move(done), [&what] { return what; }, deadline, monitor);
}

}  // namespace awex
