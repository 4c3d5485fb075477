#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "base/fixed_text.hpp"
#include "cycle/accounting.hpp"
#include "engine/engine.hpp"
#include "memory/region.hpp"

namespace awex {

/// One rank's memory at a quiet moment, as `status` shows it. Plain data, to be gathered.
struct RankStatus {
  struct Memory {
    RegionState state = RegionState::kDiscarded;
    uint64_t bytes = 0;         ///< Its full size.
    uint64_t device_bytes = 0;  ///< That it holds on the device now,
    uint64_t host_bytes = 0;    ///< and in pinned host memory.
  };
  int pid = 0;
  FixedText<32> engine{};                             ///< "stand-in".
  std::array<std::optional<Memory>, kTags> memory{};  ///< By Tag; absent: holds none of it.
  uint64_t staging_bytes = 0;                         ///< Device memory beside the tags'.
  uint64_t device_free_bytes = 0;                     ///< Of its GPU, as the driver says.
  uint64_t device_total_bytes = 0;
  std::optional<int64_t> leaked_bytes{};  ///< MemoryAccount::leaked_bytes, after the last command.
  uint64_t resident_set_bytes = 0;        ///< The process's own memory (VmRSS).
  std::optional<uint64_t> host_limit_bytes{};  ///< Of the cgroup above it that has least left.
  std::optional<uint64_t> host_used_bytes{};   ///< In it, by all.
  std::optional<uint64_t> lock_limit_bytes{};  ///< RLIMIT_MEMLOCK; absent: none.
  uint64_t steps = 0;                          ///< A trainer's, of training.
  std::optional<Attendance> attendance{};      ///< Of an engine that attaches.
};
static_assert(std::is_trivially_copyable_v<RankStatus>);

/// What is known without asking the engine or the device; the rest is empty.
[[nodiscard]] RankStatus status_of_process();

}  // namespace awex
