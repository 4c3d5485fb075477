#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/fixed_text.hpp"

namespace awex {

inline constexpr uint64_t kUnbounded = std::numeric_limits<uint64_t>::max();

/// Something that bounds the host memory of this process, together with that of others. Plain data,
/// to be compared over ranks.
struct HostBound {
  uint64_t group = 0;  ///< Equal in all processes of one host that are counted together.
  uint64_t most_bytes = kUnbounded;  ///< Together they can never hold more, swap space included.
  uint64_t left_bytes = kUnbounded;  ///< Free now, with what the kernel can take back for it.
  FixedText<192> name{};             ///< "memory.max of cgroup /job (32 GB)".
};

/// What bounds host memory here: what the kernel would still give (MemAvailable, which on virtual
/// machines that grow when memory is touched is less than they will give), and the limits of the
/// cgroups that this process is in, from its own up: memory.max and memory.high (version 2),
/// memory.limit_in_bytes (version 1). What cannot be read bounds nothing. `root` is put before the
/// paths of files.
[[nodiscard]] std::vector<HostBound> host_memory_bounds(const std::string& root = {});

/// The size that RLIMIT_MEMLOCK has for this process, "8.39 MB", or "unlimited".
[[nodiscard]] std::string describe_locked_memory_limit();

}  // namespace awex
