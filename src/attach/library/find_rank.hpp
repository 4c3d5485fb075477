#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "attach/engine_record.hpp"
#include "base/unique_fd.hpp"
#include "base/wait.hpp"
#include "memory/gpu_uuid.hpp"

namespace awex::attach {

/// "GPU-8f3c…", "MIG-…" or 32 hex digits, dashes where people have them. Throws a request error.
[[nodiscard]] GpuUuid parse_gpu_uuid(std::string_view text);

/// The directory of the job that an engine which was told of none attaches to: what
/// AWEX_COLOCATE_JOB says, else the only job of this user on this host that waits for engines.
/// Throws a request error that names all where there are several.
[[nodiscard]] std::string find_job();

/// Which rank an engine belongs to.
struct RankWanted {
  std::string job;  ///< The job's directory.
  Role role = Role::kTrainer;
  std::optional<GpuUuid> gpu;  ///< Absent on the `host` backend;
  int device = 0;              ///< there the position among the ranks of the role on this host.
};

struct FoundRank {
  EngineRecord record;
  UniqueFd socket;  ///< Connected.
};

/// Waits for the rank: its record is there and it listens. Throws request errors for what no
/// waiting mends, and Error(kDeadline) that tells what is there in its place: other roles, GPUs,
/// hosts or containers, a job that has ended.
[[nodiscard]] FoundRank find_rank(const RankWanted& wanted, const Deadline& deadline);

}  // namespace awex::attach
