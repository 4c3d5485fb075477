#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attach/message.hpp"

namespace awex::attach {

/// Where a rank of a job waits for its engine: a file `engines/<host>-<role>-<device>.json` in the
/// job's directory, which hosts may share, replaced as a whole. Those of a job's lost ranks on
/// other hosts may lie beside its successor's.
struct EngineRecord {
  std::string job;  ///< Of its ranks alone: rank 0's private directory.
  std::string host;
  std::string boot_id;         ///< Of that host's kernel.
  uint64_t pid_namespace = 0;  ///< Inode.
  int rank = 0;
  int pid = 0;  ///< The rank's.
  Role role = Role::kTrainer;
  int device = 0;                  ///< Position among the ranks of its role on the host.
  std::array<uint8_t, 16> uuid{};  ///< Of the device.
  std::string backend;
  std::string socket;  ///< Path on that host.
  /// While the job starts: "an engine to attach", "vllm 0.32.0 (pid 4711) to declare its tensors";
  /// empty for nothing.
  std::string awaits;
};

/// Makes the folder, too. Throws request errors.
void write_engine_record(const std::string& job_directory, const EngineRecord& record);
/// Unless another job has written its own there since.
void remove_engine_record(const std::string& job_directory, const EngineRecord& record) noexcept;
/// Removes the records and private directories of ranks of `mine`'s host that live no longer, and
/// of those that `is_lost` says so of: killed ones cannot do it themselves.
void bury_engine_records(const std::string& job_directory, const EngineRecord& mine,
                         const std::function<bool(const EngineRecord&)>& is_lost = {}) noexcept;
/// All records of a job's directory, none where there are none yet. Throws request errors for
/// records that are none.
[[nodiscard]] std::vector<EngineRecord> read_engine_records(const std::string& job_directory);

}  // namespace awex::attach
