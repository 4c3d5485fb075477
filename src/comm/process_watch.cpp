#include "comm/process_watch.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.hpp"

namespace awex {

namespace {

std::optional<uint64_t> start_time_of_living(int pid) {
  const auto stat = process_stat_of(pid);
  if (!stat || stat->has_ended()) return std::nullopt;
  return stat->start_time;
}

/// /proc must be that of this process's own PID namespace, and tell of other processes.
void check_proc(int pid, int refusal) {
  if (process_stat_of(::getpid())) return;
  throw errno_error(fmt::format("watch process {} (and /proc is not there to look at)", pid),
                    "pidfd_open", refusal);
}

}  // namespace

void ProcessWatch::add(int rank, int pid) {
  Watched watched{rank, pid, UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))), {}};
  const int refusal = watched.fd.valid() ? 0 : errno;
  if (refusal != 0 && refusal != ESRCH) {
    // Linux before 5.3, or a filter of system calls that answers what it likes.
    check_proc(pid, refusal);
    watched.start_time = start_time_of_living(pid);
  }
  polls_.push_back({watched.fd.get(), POLLIN, 0});
  watched_.push_back(std::move(watched));
}

void ProcessWatch::clear() {
  watched_.clear();
  polls_.clear();
}

bool ProcessWatch::is_gone(const Watched& watched, const pollfd& poll) {
  if (watched.fd.valid()) return (poll.revents & POLLIN) != 0;
  if (!watched.start_time) return true;
  try {
    return start_time_of_living(watched.pid) != watched.start_time;
  } catch (const Error&) {
    return false;  // out of descriptors, say: the next look will tell
  }
}

std::vector<int> ProcessWatch::gone() {
  std::vector<int> ranks;
  if (::poll(polls_.data(), polls_.size(), 0) < 0)
    return ranks;  // EINTR: the next look will see it
  for (size_t i = 0; i < polls_.size(); ++i) {
    if (is_gone(watched_[i], polls_[i])) ranks.push_back(watched_[i].rank);
  }
  return ranks;
}

}  // namespace awex
