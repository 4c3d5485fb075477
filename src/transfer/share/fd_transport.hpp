#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "base/wait.hpp"

namespace awex {

/// Descriptors taken from another process, or why the system refused.
struct PidfdResult {
  std::vector<UniqueFd> fds;  ///< Close-on-exec.
  int refusal = 0;            ///< errno when ptrace rules or the kernel forbid taking them; else 0.
};

/// Takes descriptors `numbers` of process `pid` with pidfd_getfd. Refused without permission to
/// trace that process (EPERM) or before Linux 5.6 (ENOSYS); throws Error(kRuntime) on all else.
[[nodiscard]] PidfdResult fetch_by_pidfd(int pid, std::span<const int32_t> numbers);

/// A private socket that hands out descriptors (SCM_RIGHTS) where pidfd_getfd is refused. Its name
/// is random and abstract: no file remains, and who does not know it cannot guess it.
class FdSocket {
 public:
  /// Throws Error(kRuntime).
  FdSocket();

  /// The name after the leading zero byte; below 64 characters.
  [[nodiscard]] const std::string& name() const { return name_; }

  /// Waits for process `pid` of this user to connect and sends it `fds`. Others that connect are
  /// turned away. `what` names the descriptors for errors. Throws Error(kRuntime), Error(kDeadline)
  /// and what the monitor throws.
  void serve(int pid, std::span<const int> fds, const std::string& what, const Deadline& deadline,
             WaitMonitor& monitor);

 private:
  std::string name_;
  UniqueFd listener_;
};

/// Receives exactly `count` descriptors (close-on-exec) from the FdSocket `name` of process `pid`
/// of this user. Throws as `FdSocket::serve`.
[[nodiscard]] std::vector<UniqueFd> fetch_by_socket(const std::string& name, int pid, size_t count,
                                                    const std::string& what,
                                                    const Deadline& deadline, WaitMonitor& monitor);

}  // namespace awex
