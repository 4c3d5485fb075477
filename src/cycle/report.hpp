#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace awex {

/// One rank's doing of one phase. Times are in seconds since the job's common start.
struct RankPhase {
  int rank = 0;
  double start_s = 0;
  double seconds = 0;
  uint64_t bytes = 0;
};

/// A phase over all ranks of its role: from the first start to the last end, bytes summed.
struct PhaseReport {
  std::string phase;  ///< As in docs/design.md, "An update": "offload", "transfer", …
  std::string role;   ///< "trainer", "inference", or "all" for a phase of both.
  std::string tag;    ///< "weights", "optimizer", "kv_cache"; empty when it is about no memory.
  double start_s = 0;
  double seconds = 0;
  uint64_t bytes = 0;                       ///< Moved or read by the phase; 0 when it moves none.
  std::optional<double> limit_bytes_per_s;  ///< Of all links that the phase uses, when measured.
  std::vector<RankPhase> ranks;             ///< For the trace.

  /// Payload bytes per second; absent for a phase that moves nothing or takes no time.
  [[nodiscard]] std::optional<double> bytes_per_s() const {
    if (bytes == 0 || seconds <= 0) return std::nullopt;
    return static_cast<double>(bytes) / seconds;
  }
  /// bytes_per_s against the limit, when both are known.
  [[nodiscard]] std::optional<double> ratio() const {
    const auto rate = bytes_per_s();
    if (!rate || !limit_bytes_per_s || *limit_bytes_per_s <= 0) return std::nullopt;
    return *rate / *limit_bytes_per_s;
  }
};

struct DigestReport {
  uint64_t tensors = 0;
  uint64_t mismatched = 0;
  uint64_t model = 0;                   ///< The model's digest as inference holds it.
  std::vector<std::string> mismatches;  ///< Names of wrong tensors, the first few.
};

struct VersionReport {
  uint64_t version = 0;
  bool committed = false;
  std::optional<double> seconds;  ///< Absent when it was interrupted.
  std::vector<PhaseReport> phases;
  std::optional<DigestReport> digest;  ///< Absent with --verify off.
};

struct MemoryByTag {
  std::string role;
  std::string tag;
  uint64_t device_peak_bytes = 0;  ///< Highest sum over ranks at the end of a phase.
  uint64_t host_pinned_bytes = 0;  ///< Sum over ranks at the end.
};

struct MemoryReport {
  std::optional<uint64_t> device_peak_bytes;  ///< Of the fullest device, both roles together.
  uint64_t host_pinned_bytes = 0;
  std::optional<int64_t> leaked_bytes;  ///< Largest excess over the books after any phase.
  int64_t leak_tolerance_bytes = 0;     ///< What the driver may take for itself.
  std::vector<MemoryByTag> by_role_and_tag;
};

struct RankInfo {
  int rank = 0;
  std::string role;
  std::string host;
  std::string gpu;  ///< Index and name, "0 NVIDIA H100 80GB HBM3".
};

struct PlanReport {
  double seconds = 0;  ///< The slowest rank's planning.
  uint64_t pieces = 0;
  uint64_t local_bytes = 0;
  uint64_t remote_bytes = 0;
  uint64_t remote_bytes_lower_bound = 0;
};

struct Limits {
  std::optional<double> device_to_host;  ///< Bytes/s, one device.
  std::optional<double> host_to_device;
  std::optional<double> device_to_device;
};

/// All that a run has to say: the one source of the table, the timeline, the JSON and the trace.
struct Report {
  std::string command;
  std::string started_at;  ///< ISO 8601, UTC.
  std::string backend;
  std::string model_name;
  uint64_t model_tensors = 0;
  uint64_t model_bytes = 0;
  std::string trainer;  ///< Layout::describe().
  std::string inference;
  std::vector<std::string> notes;  ///< Layout::notes() of inference.
  int ranks = 0;
  int gpus = 0;
  int nodes = 0;
  /// How attached inference engines were admitted: "digest", "off" or "not asked"; empty where no
  /// engine attaches.
  std::string admission;
  std::vector<int> one_core_ranks;  ///< Bound to one core of a machine that has more.
  bool offload = true;
  std::vector<RankInfo> rank_infos;
  std::optional<PlanReport> plan;
  std::vector<VersionReport> versions;
  MemoryReport memory;
  Limits limits;
  std::optional<uint64_t> committed_version;
  bool poisoned = false;  ///< Inference holds weights that are not a committed version's.
  std::optional<Error> error;
  bool finished = false;  ///< False while the job runs: the file says so if the process dies.

  [[nodiscard]] ExitCode exit_code() const {
    if (error) return error->code();
    return finished ? ExitCode::kOk : ExitCode::kRuntime;
  }
};

}  // namespace awex
