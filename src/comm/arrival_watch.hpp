#pragma once

#include <poll.h>

#include <set>
#include <vector>

#include "base/units.hpp"
#include "comm/bell.hpp"

namespace awex {

/// Sleeps until something arrives for MPI, for a rank that nobody of its node wakes: over TCP that
/// comes through sockets of this process, which a sleeper can watch at no cost while nothing
/// happens. Which of them are MPI's is not known, so all are watched; over another network there
/// are none. That it wakes is relied on once it has woken.
class ArrivalWatch {
 public:
  /// A new wait begins.
  void begin() { found_ = slept_ = false; }
  /// Sleeps until something arrives, or the bell rings, or a signal comes: at most for 0.1 s, or
  /// for 2 ms where it is not known to wake. Returns whether something has come. MPI must have
  /// looked for arrivals since the last call: what it has left alone is not for it.
  [[nodiscard]] bool sleep(const Bell& bell);
  /// What was waited for has come: whether that has woken it is what counts from now on.
  void end() { wakes_ = slept_ ? woken_ : wakes_; }

 private:
  [[nodiscard]] bool find();

  std::vector<pollfd> sockets_;
  std::set<int> left_alone_;  ///< Were readable already when sockets were looked for the last time.
  bool found_ = false;
  bool slept_ = false;
  bool woken_ = false;  ///< By an arrival, out of the last sleep.
  bool wakes_ = false;
};

}  // namespace awex
