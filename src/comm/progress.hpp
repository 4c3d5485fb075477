#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <type_traits>

#include "base/fixed_text.hpp"
#include "base/wait.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/requests.hpp"

namespace awex {

/// WorkProgress as plain data.
struct WireProgress {
  FixedText<64> what{};
  FixedText<512> file{};
  uint64_t done_bytes = 0;
  uint64_t all_bytes = 0;
  uint64_t epoch = 0;
  bool ended = true;
};
static_assert(std::is_trivially_copyable_v<WireProgress>);

/// How far all ranks have come with long local work. Each tells rank 0, which tells all, that the
/// work goes on: that renews the deadlines of those who wait. A rank that has begun and falls
/// silent fails the job.
class Progress {
 public:
  using Watcher = std::function<void(uint64_t, uint64_t)>;

  Progress(MpiWorld& world, Failures& failures) : world_(world), failures_(failures) {}

  /// On rank 0 `watcher` hears of the bytes of all ranks, done and in all.
  void watch(Watcher watcher);
  /// Takes in how far this rank has come, and lets the others know from time to time.
  void progressed(const WorkProgress& progress);
  /// Takes in what others tell, and tells on what is new.
  void exchange();
  /// Fails when a rank has fallen silent in the midst of its work.
  void look_for_silent();
  /// On rank 0: whether another rank is in the midst of long work and has not fallen silent.
  [[nodiscard]] bool is_working(int rank) const;
  /// Forgets all work, of this rank and of others: a failed command's has ended everywhere.
  void forget();
  /// Whether `deadline`, of the job's timeout and `grace`, is over, which any rank's progress
  /// renews.
  [[nodiscard]] bool overdue(const Deadline& deadline, Seconds grace) const;

 private:
  using Clock = MpiWorld::Clock;

  /// The last that a rank has told of its long work.
  struct Heard {
    WireProgress progress;
    Clock::time_point when;
  };

  void hear(const WireProgress& progress, int from);
  void tell();
  void send(int to);
  void show(int of, const WireProgress& progress);

  MpiWorld& world_;
  Failures& failures_;
  std::map<int, Heard> working_;      ///< Other ranks in the midst of long work.
  std::map<int, WireProgress> told_;  ///< The last of every rank that has told any.
  Watcher watcher_;
  WireProgress own_;        ///< Rank 0 tells it to all.
  Clock::time_point last_;  ///< When any rank told.
  Clock::time_point next_tell_;
  bool news_ = false;  ///< Progress, on rank 0 that of any, which has not been told.
  Outbox outbox_;
};

}  // namespace awex
