#pragma once

#include <optional>

#include "base/units.hpp"
#include "comm/signals.hpp"

namespace awex {

/// How long MPI may take to start, and what is left when it does not.
struct MpiStart {
  Seconds allowance{5};               ///< On top of the timeout, for processes that begin.
  std::optional<int> launched_rank;   ///< As the launcher tells it.
  LastReport report;                  ///< To leave in a file.
  LastReport report_when_ended = {};  ///< The same where a signal ends the process meanwhile.
};

}  // namespace awex
