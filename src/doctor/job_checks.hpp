#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "base/launch.hpp"
#include "comm/job.hpp"
#include "doctor/finding.hpp"
#include "memory/device.hpp"

/// What ranks find in how they were started and where they are.

namespace awex {

/// Where a process is, as it says itself. Plain data, to be compared over ranks.
struct Place {
  NodeIdentity node;
  int32_t pid = 0;
  /// Of its namespaces, 0 where that cannot be known.
  uint64_t pid_namespace = 0;
  uint64_t ipc_namespace = 0;
  uint64_t mount_namespace = 0;
  uint64_t network_namespace = 0;
  uint64_t shm_device = 0;  ///< The file system at /dev/shm.
  double monotonic_s = 0;   ///< The clock of deadlines and timelines, read when all ranks did.
  double wall_s = 0;
};
static_assert(std::is_trivially_copyable_v<Place>);

[[nodiscard]] Place read_place(const NodeIdentity& node);

/// How this process was started; `ranks` is the job's size.
[[nodiscard]] Finding check_launcher(const Launch& launch, int ranks);
/// The MPI library, as it runs here.
[[nodiscard]] Finding check_mpi();

/// Whether rank `me` shares with the ranks of its host what sharing memory needs. By rank; pure.
[[nodiscard]] Finding check_namespaces(std::span<const Place> places, size_t me,
                                       BackendKind backend);
/// Whether rank `me` reads the same time as others: what is measured over ranks is compared. By
/// rank; pure.
[[nodiscard]] Finding check_clock(std::span<const Place> places, size_t me);

/// The rank that rank `me` tries sharing with where GPUs do not pair them: the next one of its host
/// whose process it sees; itself when it is alone, -1 when no other can be seen. Pure.
[[nodiscard]] int next_to_try(std::span<const Place> places, size_t me);

}  // namespace awex
