#pragma once

#include <cstdint>

namespace awex {

/// Bytes of host memory that this process's cgroup and the kernel would still give: the smaller of
/// MemAvailable and, where the cgroup has a limit (v2, memory.max), what is left of it. Some
/// virtual machines grow when memory is touched and show less than they will give.
[[nodiscard]] uint64_t available_host_memory();

}  // namespace awex
