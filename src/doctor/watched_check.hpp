#pragma once

#include <functional>

#include "base/wait.hpp"
#include "doctor/finding.hpp"

namespace awex {

/// The time that checks which may hang have together, and each of them alone.
class CheckTime {
 public:
  CheckTime(Seconds together, Seconds each) : together_(together), each_(each) {}

  /// What the next one has: never nothing, so that a quick check is made also after one that hangs.
  [[nodiscard]] Seconds next() const;

 private:
  Seconds together_;
  Seconds each_;
  Stopwatch watch_;
};

/// What `check` finds, in a thread of its own. One that throws or does not end in time has failed;
/// then its thread may still hang, so that it must own all it uses. Throws what the monitor throws.
[[nodiscard]] Finding watch_check(std::function<Finding()> check, const CheckTime& time,
                                  WaitMonitor& monitor);

}  // namespace awex
