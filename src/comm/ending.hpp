#pragma once

#include <optional>

#include "base/error.hpp"
#include "base/wait.hpp"
#include "comm/collectives.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"

namespace awex {

/// How a job ends: in order, or by MPI_Abort after one rank has reported. See Job.
class Ending {
 public:
  Ending(MpiWorld& world, Failures& failures, Collectives& collectives)
      : world_(world), failures_(failures), collectives_(collectives) {}

  [[nodiscard]] bool is_reporter() const;
  void await_turn_to_report(ExitCode code);
  void finish();
  [[noreturn]] void abort(ExitCode code);

 private:
  [[nodiscard]] int count_lost_before() const;
  [[nodiscard]] bool told_to_end_now();
  [[nodiscard]] bool others_end_it_within(Seconds longest);
  [[nodiscard]] bool others_report_within(Seconds patient, Seconds hurried);
  [[noreturn]] void end_reported(ExitCode code);

  MpiWorld& world_;
  Failures& failures_;
  Collectives& collectives_;
  std::optional<Deadline> signal_burst_;  ///< Of the signals that this rank reports itself.
  int known_signals_ = 0;
};

}  // namespace awex
