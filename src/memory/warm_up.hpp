#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "base/wait.hpp"
#include "memory/region.hpp"

namespace awex {

/// Prepares the host memory of regions in the background, one region after the other, on a thread
/// of its own, so that first offloads are as fast as later ones. Meanwhile regions may be taken and
/// used. Call it from one thread.
class WarmUp {
 public:
  /// Begins with the first of `regions`, which must outlive it. Throws a run-time error when the
  /// system refuses a thread.
  explicit WarmUp(const std::vector<Region*>& regions);
  WarmUp(const WarmUp&) = delete;
  WarmUp& operator=(const WarmUp&) = delete;
  WarmUp(WarmUp&&) = delete;
  WarmUp& operator=(WarmUp&&) = delete;
  /// Gives up what is not prepared yet; waits for the chunk that is being made.
  ~WarmUp() = default;

  /// Gives it up without waiting: no further chunk is begun.
  void stop() { thread_.request_stop(); }

  struct Prepared {
    uint64_t bytes = 0;
    double seconds = 0;  ///< What it took in the background.
  };

  /// Returns when `region` may be offloaded: its host memory is prepared. Tells the monitor how far
  /// that is meanwhile. Nothing where that was
  /// never asked for or has been told before. Throws what made the preparation fail, with region,
  /// bytes and tag, Error(kDeadline), and what the monitor throws.
  std::optional<Prepared> finish(const Region& region, const Deadline& deadline,
                                 WaitMonitor& monitor);

 private:
  struct Task {
    explicit Task(Region* of) : region(of) {}

    Region* region;
    double seconds = 0;
    std::exception_ptr failure;
    std::atomic<bool> is_done{false};  ///< Set last: what is above may be read from then on.
    bool is_told = false;              ///< By `finish`.
  };

  [[nodiscard]] std::pair<uint64_t, uint64_t> progress_until(const Task& last) const;
  static void prepare(Task& task, const std::stop_token& stop);

  std::deque<Task> tasks_;
  std::jthread thread_;  ///< Last, so that it ends first.
};

}  // namespace awex
