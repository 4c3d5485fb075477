#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/units.hpp"
#include "base/wait.hpp"

/// Long local work (reading a checkpoint, generating weights) that others wait for: it counts the
/// bytes that it has done, so that slow work can be told from work that hangs.
namespace awex::work {

/// A thread at work on a part of a file, for errors: while it lives, `attend` can name the file.
/// Throws a run-time error when the work that it belongs to has been given up.
class FileRead {
 public:
  /// `file_bytes` is the size of the file; both are copied.
  FileRead(const std::string& file, uint64_t file_bytes);
  FileRead(const FileRead&) = delete;
  FileRead& operator=(const FileRead&) = delete;
  FileRead(FileRead&&) = delete;
  FileRead& operator=(FileRead&&) = delete;
  ~FileRead();

 private:
  uint64_t id_;
};

/// Counts bytes that this process has read or made. Safe from every thread.
void advance(uint64_t bytes);
/// All bytes counted so far.
[[nodiscard]] uint64_t advanced();

/// What is to be done, for progress and errors.
struct Task {
  std::string what;         ///< "loading the weights".
  uint64_t done_bytes = 0;  ///< Before this part of the task.
  uint64_t all_bytes = 0;   ///< Of the whole task; 0 when unknown.
  bool reads = true;        ///< From storage; else it works on memory.
};

/// Runs `work` in a thread of its own while this one polls `monitor` and tells it what has been
/// done. Returns when the work is done; throws what it throws. Throws what the monitor throws, and
/// Error(kDeadline) with the file and the bytes done when no byte was counted for `silence`: the
/// work is given up then, but its thread may still wait for a disk, so that all it uses must be its
/// own or stay until the process ends.
void attend(std::function<void()> work, const Task& task, Seconds silence, WaitMonitor& monitor);

}  // namespace awex::work
