#pragma once

#include <map>
#include <optional>
#include <vector>

#include "base/units.hpp"
#include "comm/mpi_world.hpp"
#include "comm/progress.hpp"

namespace awex {

/// Who need not be waited for any longer in recovery. A rank has the job's timeout to come, like in
/// every wait. But where the failure is itself a deadline that has passed, that time is over
/// already: then a rank that gives no sign of life for a moment is lost. Signs of life are that its
/// process runs on a processor or waits for a disk, which only ranks of its node can see, and that
/// it has told of long work that goes on. A stopped process is lost at once.
class SignsOfLife {
 public:
  /// How long a rank may be silent when the timeout is spent.
  static constexpr Seconds kSilence{0.75};

  SignsOfLife(const MpiWorld& world, const Progress& progress, bool timeout_is_spent)
      : world_(world), progress_(progress), timeout_is_spent_(timeout_is_spent) {}

  /// The lost among `missing`, whom this rank waits for. To be asked often: most calls only read
  /// the clock.
  [[nodiscard]] std::vector<int> lost_among(const std::vector<int>& missing);
  /// How long it has waited.
  [[nodiscard]] Seconds waited() const { return Clock::now() - start_; }

 private:
  using Clock = MpiWorld::Clock;

  /// What was last seen of a rank.
  struct Seen {
    Clock::time_point sign;  ///< Of life.
    std::optional<Clock::time_point> stopped;
    std::optional<uint64_t> processor_ticks;
  };

  [[nodiscard]] bool is_lost(int rank);

  const MpiWorld& world_;
  const Progress& progress_;
  bool timeout_is_spent_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_look_ = start_;
  std::map<int, Seen> seen_;
};

}  // namespace awex
