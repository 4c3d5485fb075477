#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/wait.hpp"
#include "cycle/content.hpp"
#include "cycle/rank_status.hpp"
#include "cycle/report.hpp"

namespace awex {

/// What a rank waits for while its job starts.
struct RankWait {
  int rank = 0;
  std::string role;
  std::string host;
  std::string awaits;  ///< As attach::EngineRecord's.
};

/// What rank 0 knows of its job at any time, also while others hang.
struct JobStatus {
  enum class Activity : uint8_t { kStarting, kIdle, kRunning, kRecovering, kEnding };
  Activity activity = Activity::kStarting;
  std::string command;    ///< That runs; empty for none.
  std::string phase;      ///< Of it, or of the start.
  double since_s = 0;     ///< How long phase, command and activity have been the same, when read.
  uint64_t queued = 0;    ///< Commands that wait.
  uint64_t commands = 0;  ///< That have ended, and how many of them failed.
  uint64_t failures = 0;
  uint64_t epoch = 0;  ///< Job::epoch.

  std::string started_at;  ///< ISO 8601, UTC.
  std::string build;       ///< build_identity().
  std::string backend;
  std::string model_name;
  std::string trainer;
  std::string inference;
  ContentState content = ContentState::kEmpty;
  std::optional<uint64_t> committed_version;
  MemoryReport memory;            ///< Against the books, after the last command.
  std::vector<RankStatus> ranks;  ///< After the last command; by rank; empty while starting.
  std::vector<RankInfo> rank_infos;
  std::vector<RankWait> waits;  ///< While starting; by rank.
  std::optional<Error> last_error;
  std::string last_error_at;  ///< ISO 8601, UTC; empty without one.
};

/// "starting", "idle", …
[[nodiscard]] const char* activity_name(JobStatus::Activity activity);

/// As one JSON object, schema_version 1, ended by a newline: unit in the key, null for what is
/// unknown. Its keys:
///   schema_version, activity, command, phase, since_s, queued, commands, failures, epoch,
///   started_at, build, backend, model, trainer, inference, content ("empty", …),
///   committed_version,
///   memory: device_peak_bytes, host_pinned_bytes, leaked_bytes, leak_tolerance_bytes,
///     by_role_and_tag (as in a report),
///   ranks: a list of RankInfo and RankStatus in one object: rank, role, host, gpu, engine, pid,
///     tags, staging_bytes, device_free_bytes, device_total_bytes, leaked_bytes (by its process
///     on host, by all on its GPU on cuda), resident_set_bytes, host_limit_bytes, host_used_bytes,
///     lock_limit_bytes, steps and, of an engine that attaches, engine_pid, engine_state ("ready",
///     "busy", "lost since …", "detached …") and engine_own_bytes (of the GPU: weights that it
///     lends, while they are there, and what it has told of by awex_book); tags is a list of those
///     that the rank holds: tag, state, bytes, device_bytes, host_bytes,
///   waits: a list of ranks that wait for their engines while the job starts: rank, role, host,
///     awaits (words),
///   last_error (as in a report), last_error_at.
[[nodiscard]] std::string render_status_json(const JobStatus& status);

/// A job's status, which its threads share.
class StatusBoard {
 public:
  /// `change` is given the status to change; it must not call the board.
  template <class Change>
  void update(const Change& change) {
    const std::lock_guard lock(mutex_);
    const auto before = std::tuple(status_.activity, status_.command, status_.phase);
    change(status_);
    if (before != std::tie(status_.activity, status_.command, status_.phase)) since_ = {};
  }
  /// What the board is not told of: `look` adds it, on the thread of each `read`, and must not
  /// throw.
  void look_with(std::function<void(JobStatus&)> look) {
    const std::lock_guard lock(mutex_);
    look_ = std::move(look);
  }
  [[nodiscard]] JobStatus read() const {
    auto [status, look] = copy();
    if (look) look(status);
    return status;
  }

 private:
  [[nodiscard]] std::pair<JobStatus, std::function<void(JobStatus&)>> copy() const {
    const std::lock_guard lock(mutex_);
    auto status = status_;
    status.since_s = since_.seconds();
    return {std::move(status), look_};
  }

  mutable std::mutex mutex_;
  JobStatus status_;
  Stopwatch since_;
  std::function<void(JobStatus&)> look_;
};

}  // namespace awex
