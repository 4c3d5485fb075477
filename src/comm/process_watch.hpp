#pragma once

#include <poll.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/process_activity.hpp"
#include "base/unique_fd.hpp"

namespace awex {

/// Watches processes of this PID namespace for their end: a pid that is used again for another
/// process is never taken for the first one. Through pidfds, or by pid and start time in /proc
/// where the system has no pidfds or forbids them.
class ProcessWatch {
 public:
  /// Watches `pid`, known as `rank`. A pid that does not exist counts as gone. Throws
  /// Error(kRuntime) where neither pidfds nor /proc tell.
  void add(int rank, int pid);
  /// Stops watching.
  void clear();
  /// Ranks whose processes have ended (zombies included), in the order of `add`. Does not wait.
  [[nodiscard]] std::vector<int> gone();

 private:
  struct Watched {
    int rank = 0;
    int pid = 0;
    UniqueFd fd;  ///< Not valid when the process did not exist or pidfds are refused.
    std::optional<uint64_t> start_time;  ///< Where pidfds are refused, of a process that lives.
  };
  [[nodiscard]] static bool is_gone(const Watched& watched, const pollfd& poll);

  std::vector<Watched> watched_;
  std::vector<pollfd> polls_;
};

}  // namespace awex
