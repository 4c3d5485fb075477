#pragma once

#include <cstdint>
#include <string>

#include "doctor/finding.hpp"
#include "memory/device.hpp"

/// What this process finds on its machine, alone. Where a call takes a `root`, it is put before the
/// paths of files, for tests.

namespace awex {

/// Files in memory: made, sealed and mapped, as shared memory on `host` and ledgers need them.
[[nodiscard]] Finding check_memfd();
/// RLIMIT_MEMLOCK. Only what pins memory for a GPU may be held to it.
[[nodiscard]] Finding check_locked_memory(BackendKind backend);
/// RLIMIT_NOFILE against what is open and what chunks of memory need.
[[nodiscard]] Finding check_open_files();
/// /dev/shm, where MPI and NCCL put what `node_ranks` ranks of this node share.
[[nodiscard]] Finding check_dev_shm(BackendKind backend, uint64_t node_ranks);
/// Whether host memory comes in huge pages.
[[nodiscard]] Finding check_huge_pages(const std::string& root = {});
/// What Yama lets processes of one user do to each other.
[[nodiscard]] Finding check_ptrace_scope(const std::string& root = {});
/// "2 NUMA nodes", by the kernel's list; empty where it does not tell.
[[nodiscard]] std::string describe_numa_nodes(const std::string& root = {});

}  // namespace awex
