#include "comm/process_watch.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string_view>

#include "base/error.hpp"

namespace awex {

namespace {

/// What /proc/PID/stat tells of a process, by the fields behind its name, which in parentheses may
/// hold any character.
struct Stat {
  char state = 0;
  uint64_t processor_ticks = 0;
  uint64_t start_time = 0;  ///< Ticks since the machine's start; differs where a pid is used again.
};

/// Nothing where there is no such process. Throws errno's code where that cannot be known.
std::optional<Stat> read_stat(const std::string& path) {
  const auto attempt = [&path] { return "look at a process in " + path; };
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) {
    if (errno == ENOENT || errno == ESRCH) return std::nullopt;
    throw errno_error(attempt(), "open", errno);
  }
  std::array<char, 1024> text{};
  const auto bytes = ::read(file.get(), text.data(), text.size() - 1);
  if (bytes < 0) {
    if (errno == ESRCH) return std::nullopt;
    throw errno_error(attempt(), "read", errno);
  }
  const std::string_view line(text.data(), static_cast<size_t>(bytes));
  const auto name_end = line.rfind(") ");
  if (name_end == std::string_view::npos) return std::nullopt;
  std::istringstream fields{std::string(line.substr(name_end + 2))};
  Stat stat;
  fields >> stat.state;
  const auto skip = [&fields](int count) {
    std::string skipped;
    for (int i = 0; i < count; ++i) fields >> skipped;
  };
  // Field 3 is the state, 14 and 15 are the times in user and kernel mode, 22 is the start time.
  uint64_t kernel_ticks = 0;
  skip(10);
  fields >> stat.processor_ticks >> kernel_ticks;
  stat.processor_ticks += kernel_ticks;
  skip(6);
  fields >> stat.start_time;
  if (!fields) throw runtime_error("cannot read " + path);
  return stat;
}

std::optional<Stat> read_stat(int pid) { return read_stat(fmt::format("/proc/{}/stat", pid)); }

/// A zombie has ended.
std::optional<uint64_t> start_time_of_living(int pid) {
  const auto stat = read_stat(pid);
  if (!stat || stat->state == 'Z' || stat->state == 'X') return std::nullopt;
  return stat->start_time;
}

/// /proc must be that of this process's own PID namespace, and tell of other processes.
void check_proc(int pid, int refusal) {
  if (read_stat(::getpid())) return;
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

std::optional<ProcessActivity> activity_of(int pid) {
  try {
    const auto stat = read_stat(fmt::format("/proc/{0}/task/{0}/stat", pid));
    if (!stat) return std::nullopt;
    return ProcessActivity{stat->state == 'T' || stat->state == 't',
                           stat->state == 'R' || stat->state == 'D', stat->processor_ticks};
  } catch (const Error&) {
    return std::nullopt;
  }
}

bool is_stopped(int pid) {
  const auto activity = activity_of(pid);
  return activity && activity->is_stopped;
}

}  // namespace awex
