#include "base/process_activity.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string_view>

#include "base/error.hpp"
#include "base/unique_fd.hpp"

namespace awex {

std::optional<ProcessStat> read_process_stat(const std::string& path) {
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
  ProcessStat stat;
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

std::optional<ProcessStat> process_stat_of(int pid) {
  return read_process_stat(fmt::format("/proc/{}/stat", pid));
}

std::optional<ProcessActivity> activity_of(int pid) {
  try {
    const auto stat = read_process_stat(fmt::format("/proc/{0}/task/{0}/stat", pid));
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
