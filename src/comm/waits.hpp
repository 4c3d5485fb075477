#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/wait.hpp"
#include "comm/arrival_watch.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/progress.hpp"
#include "comm/requests.hpp"
#include "comm/roll_call.hpp"
#include "comm/wire_error.hpp"

namespace awex {

// When a wait for everyone fails, the rank that knows most should speak first. Local waits end
// after the timeout and say what they waited for; then rank 0, which knows who is missing; then the
// others, who ask rank 0 and, when it does not answer, name it.
inline constexpr Seconds kRankZeroGrace{0.2};
inline constexpr Seconds kOthersGrace{0.4};
inline constexpr Seconds kAnswerGrace{0.4};

/// The wait loop of all that waits for other ranks.
class Waits {
 public:
  Waits(MpiWorld& world, Failures& failures, Progress& progress)
      : world_(world), failures_(failures), progress_(progress), roll_call_(world) {}

  /// Throws the failure that any rank announced, and what Failures and Progress find. Cheap: most
  /// calls only read the clock.
  void poll();
  /// See Job::set_interrupt.
  void set_interrupt(std::function<void()> interrupt) { interrupt_ = std::move(interrupt); }

  /// See Job::set_rest_hook.
  void set_rest_hook(std::function<void()> hook) { rest_hook_ = std::move(hook); }

  /// Returns when `done()` is true. Once the job's timeout and `grace` have passed without any
  /// rank's progress, `when_late()` is called after every look: it throws, or lets the wait go on.
  /// `when_asked`, if given, is called on rank 0 when another rank asks it who is missing;
  /// otherwise it is this one, and the wait fails.
  template <class Done, class WhenLate>
  void wait(const Done& done, Seconds grace, const WhenLate& when_late,
            const std::function<void()>& when_asked = nullptr) {
    const Deadline limit(world_.timeout() + grace);
    for (uint64_t spins = 0; !done(); ++spins) {
      poll(kInWait, when_asked);
      if (progress_.overdue(limit, grace)) when_late();
      pause_in_wait(spins);
    }
  }

  /// The wait of a rank that has nothing to do, without a deadline: returns when `done()` is true.
  /// It looks often at first; then it sleeps until another rank of its node rings, and looks by
  /// itself ten times a second. A node's first rank, which nobody rings, sleeps until something
  /// arrives for MPI; where that cannot be seen it looks every 2 ms.
  template <class Done>
  void rest(const Done& done) {
    arrivals_.begin();
    for (auto start = Clock::now(); !done();) {
      poll_at_rest();
      if (rest_hook_) call_rest_hook();
      if (pause_at_rest(Clock::now() - start)) start = Clock::now();
    }
    arrivals_.end();
    next_listen_ = next_look_ = {};
  }

  /// On rank 0: waits until everyone's message is there. Otherwise fails with the first cause among
  /// the `verdicts` that came, and if there is none, with the names of those who did not come.
  /// `look`, if given, is called while it waits, with those who have not come yet, and may throw.
  void wait_for_others(Requests& requests, const std::string& deed,
                       std::span<const WireError> verdicts,
                       const std::function<void(const std::vector<int>&)>& look = nullptr);

  /// Waits for what MPI does on all ranks together, `what`, to which all have come as far as rank 0
  /// knows. Rank 0 fails with the names of those who do not answer, or of those who wait, too.
  void wait_for_all(const std::function<bool()>& done, const std::string& what);

  /// On the other ranks: waits for what rank 0 must do first. When it takes too long, asks rank 0
  /// who is missing, and names rank 0 if it does not answer.
  template <class Done>
  void wait_for_rank_zero(const Done& done, const std::string& deed) {
    std::optional<Deadline> answer;
    wait(done, kOthersGrace, [&] {
      if (!answer) {
        failures_.ask_rank_zero(world_.late({0}, deed));
        answer.emplace(kAnswerGrace);
      }
      if (!answer->expired()) return;
      failures_.give_up_on(0);
      failures_.announce_and_fail(world_.late({0}, deed));
    });
  }

 private:
  using Clock = MpiWorld::Clock;

  /// How often a poll does what is not cheap.
  struct Intervals {
    Clock::duration listen;
    Clock::duration look;  ///< At processes, and for calls.
  };
  static constexpr Intervals kInWait{std::chrono::microseconds(20), std::chrono::milliseconds(5)};

  void interrupt();
  void call_rest_hook();
  void poll_at_rest();
  [[nodiscard]] bool pause_at_rest(Clock::duration rested);
  void poll(const Intervals& intervals, const std::function<void()>& when_asked = nullptr);
  [[noreturn]] void give_up_on_all(const std::string& what);

  MpiWorld& world_;
  Failures& failures_;
  Progress& progress_;
  RollCall roll_call_;
  std::function<void()> interrupt_;
  ArrivalWatch arrivals_;
  std::function<void()> rest_hook_;
  Clock::time_point next_listen_;
  Clock::time_point next_look_;
  Clock::time_point next_rest_;  ///< For the hook.
};

}  // namespace awex
