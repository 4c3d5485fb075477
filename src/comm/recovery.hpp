#pragma once

#include "base/error.hpp"
#include "comm/collectives.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/progress.hpp"
#include "comm/signs_of_life.hpp"
#include "comm/waits.hpp"

namespace awex {

/// Brings all ranks from a failure into the next epoch. All meet at rank 0, which says what the
/// first cause was and what is still in flight: how many messages each rank has sent to which, and
/// the last collective call. Together they bring every message and call of the old epoch to its
/// end; so nothing of it is left, in MPI or in memory, when the next one begins on a new
/// communicator.
class Recovery {
 public:
  Recovery(MpiWorld& world, Failures& failures, Progress& progress, Waits& waits,
           Collectives& collectives)
      : world_(world),
        failures_(failures),
        progress_(progress),
        waits_(waits),
        collectives_(collectives) {
    control_.begin(world.control(), world.size());
  }

  /// See Job::recover. Collective.
  [[nodiscard]] Error recover(const Error& error);

 private:
  /// What a rank brings, followed by how many messages it has sent to each rank.
  struct Coming {
    WireError verdict;
    CollectiveCall begun;
    bool told_to_end = false;
    double time_s = 0;  ///< When it came, on the job's common clock.
  };
  /// What rank 0 answers, followed by how many messages each rank has sent to this one.
  struct Going {
    WireError cause;
    CollectiveCall last;
    bool told_to_end = false;  ///< Any rank.
  };
  struct Verdict {
    Going going;
    std::vector<uint64_t> sent_here;
  };

  /// The ranks come to rank 0; nobody waits too long for anyone.
  struct Meeting {
    Coming mine;
    std::string deed;  ///< That makes one come.
    SignsOfLife signs;
  };

  [[nodiscard]] Verdict meet(Meeting& meeting);
  [[nodiscard]] Verdict lead(Meeting& meeting);
  [[nodiscard]] Verdict follow(Meeting& meeting);
  void name_last(WireError& cause, const std::vector<double>& came_s) const;
  void give_up_on_lost(Meeting& meeting, const std::vector<int>& missing);
  void end_messages(const Verdict& verdict);
  [[nodiscard]] MPI_Comm make_communicator();

  MpiWorld& world_;
  Failures& failures_;
  Progress& progress_;
  Waits& waits_;
  Collectives& collectives_;
  Traffic control_;  ///< Of the meetings.
};

}  // namespace awex
