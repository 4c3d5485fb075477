#include "comm/process_watch.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/error.hpp"

namespace awex {

void ProcessWatch::add(int rank, int pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid() && errno != ESRCH) {
    throw errno_error(fmt::format("watch process {} of rank {}", pid, rank), "pidfd_open", errno);
  }
  polls_.push_back({fd.get(), POLLIN, 0});
  watched_.push_back({rank, std::move(fd)});
}

void ProcessWatch::clear() {
  watched_.clear();
  polls_.clear();
}

std::vector<int> ProcessWatch::gone() {
  std::vector<int> ranks;
  if (::poll(polls_.data(), polls_.size(), 0) < 0)
    return ranks;  // EINTR: the next look will see it
  for (size_t i = 0; i < polls_.size(); ++i) {
    if (!watched_[i].fd.valid() || (polls_[i].revents & POLLIN) != 0) {
      ranks.push_back(watched_[i].rank);
    }
  }
  return ranks;
}

bool is_stopped(int pid) {
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(stat, line);
  // The name in parentheses may hold any character, so the state is looked for behind the last one.
  const auto name_end = line.rfind(") ");
  if (name_end == std::string::npos || name_end + 2 >= line.size()) return false;
  const char state = line[name_end + 2];
  return state == 'T' || state == 't';
}

}  // namespace awex
