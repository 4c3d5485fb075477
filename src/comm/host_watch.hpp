#pragma once

#include <vector>

#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/requests.hpp"

namespace awex {

/// Notices that the way to another host is gone while a resident job rests, when nobody waits for
/// anybody: without it rank 0 would learn of that with the next command, and the ranks of the other
/// host never. The first rank of every other host tells rank 0 now and then that it is there, ten
/// times in the job's timeout, and rank 0 answers: never does it write to a host that it has not
/// just heard of, as MPI ends a process that connects to one that is gone.
class HostWatch {
 public:
  HostWatch(MpiWorld& world, Failures& failures) : world_(world), failures_(failures) {}

  /// All others have just been heard of.
  void begin();
  /// To be called often while this rank rests: tells, and takes in what others tell. Ends the
  /// job when a host has told nothing for the timeout, not counting the time in which this rank
  /// itself stood still.
  void look();

 private:
  using Clock = MpiWorld::Clock;

  /// A host that this rank hears of, from the first of its ranks.
  struct Other {
    std::vector<int> ranks;
    Seconds silent{0};
  };

  void find_others();
  void tell(int rank);
  void hear();
  [[noreturn]] void fail_silent(const Other& other);

  MpiWorld& world_;
  Failures& failures_;
  bool knows_others_ = false;
  std::vector<Other> others_;
  Clock::time_point last_look_;
  Clock::time_point next_tell_;
  Outbox outbox_;
};

}  // namespace awex
