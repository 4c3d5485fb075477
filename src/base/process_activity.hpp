#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace awex {

/// What /proc/PID/stat tells of a process, by the fields behind its name, which in parentheses may
/// hold any character.
struct ProcessStat {
  char state = 0;
  uint64_t processor_ticks = 0;
  uint64_t start_time = 0;  ///< Ticks since the machine's start; differs where a pid is used again.

  /// It is a zombie, which nobody has waited for yet, or not even that.
  [[nodiscard]] bool has_ended() const { return state == 'Z' || state == 'X'; }
};

/// Nothing where there is no such process. Throws errno's code where that cannot be known.
[[nodiscard]] std::optional<ProcessStat> read_process_stat(const std::string& path);
/// The same of a process of /proc's namespace.
[[nodiscard]] std::optional<ProcessStat> process_stat_of(int pid);

/// What a process does, as far as its main thread shows.
struct ProcessActivity {
  bool is_stopped = false;       ///< By SIGSTOP, SIGTSTP or a debugger.
  bool is_busy = false;          ///< It runs, or wants to, or waits for a disk.
  uint64_t processor_ticks = 0;  ///< Time that it has run, in the kernel's ticks.
};

/// Nothing where that cannot be known.
[[nodiscard]] std::optional<ProcessActivity> activity_of(int pid);
/// Whether the process is stopped. False when that cannot be known.
[[nodiscard]] bool is_stopped(int pid);

}  // namespace awex
