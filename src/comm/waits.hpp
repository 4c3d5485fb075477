#pragma once

#include "base/wait.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/progress.hpp"

namespace awex {

// When a wait for everyone fails, the rank that knows most should speak first. Local waits end
// after the timeout and say what they waited for; then rank 0, which knows who is missing; then the
// others, who ask rank 0 and, when it does not answer, name it.
inline constexpr Seconds kRankZeroGrace{0.5};
inline constexpr Seconds kOthersGrace{1.0};

/// The wait loop of all that waits for other ranks.
class Waits {
 public:
  Waits(MpiWorld& world, Failures& failures, Progress& progress)
      : world_(world), failures_(failures), progress_(progress) {}

  /// Throws the failure that any rank announced, and what Failures and Progress find. Cheap: most
  /// calls only read the clock.
  void poll();

  /// Returns when `done()` is true. Once the job's timeout and `grace` have passed without any
  /// rank's progress, `when_late()` is called after every look: it throws, or lets the wait go on.
  template <class Done, class WhenLate>
  void wait(const Done& done, Seconds grace, const WhenLate& when_late) {
    const Deadline limit(world_.timeout() + grace);
    for (uint64_t spins = 0; !done(); ++spins) {
      poll();
      if (progress_.overdue(limit, grace)) when_late();
      pause_in_wait(spins);
    }
  }

 private:
  using Clock = MpiWorld::Clock;

  MpiWorld& world_;
  Failures& failures_;
  Progress& progress_;
  Clock::time_point next_listen_;
  Clock::time_point next_look_;  ///< At processes.
};

}  // namespace awex
