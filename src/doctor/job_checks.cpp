#include "doctor/job_checks.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "comm/mpi_library.hpp"

namespace awex {
namespace {

uint64_t inode_of(const char* path) {
  struct stat about {};
  return ::stat(path, &about) == 0 ? about.st_ino : 0;
}

uint64_t device_of(const char* path) {
  struct stat about {};
  return ::stat(path, &about) == 0 ? about.st_dev : 0;
}

template <class Clock>
double now_on() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

const char* launcher_text(const Launch& launch) {
  switch (launch.launcher) {
    case Launcher::kNone:
      return "a launcher that MPI knows";
    case Launcher::kMpirun:
      return "mpirun";
    case Launcher::kPmix:
      return "a PMIx server";
    case Launcher::kSrun:
      return "srun --mpi=pmix";
    case Launcher::kSrunWithoutPmix:
      return "srun";
    case Launcher::kOtherMpi:
      return "another MPI's launcher";
    case Launcher::kTorchrun:
      return "torchrun";
  }
  return "unknown";
}

/// The first rank of `me`'s host whose place differs in `part`; none where that is unknown.
std::optional<size_t> first_apart(std::span<const Place> places, size_t me, uint64_t Place::*part) {
  for (size_t other = 0; other < places.size(); ++other) {
    if (places[other].node != places[me].node) continue;
    const auto one = places[me].*part;
    const auto two = places[other].*part;
    if (one != 0 && two != 0 && one != two) return other;
  }
  return std::nullopt;
}

std::string pair_text(size_t me, size_t other) {
  return fmt::format("ranks {} and {}", std::min(me, other), std::max(me, other));
}

}  // namespace

Place read_place(const NodeIdentity& node) {
  Place place;
  place.node = node;
  place.pid = ::getpid();
  place.pid_namespace = inode_of("/proc/self/ns/pid");
  place.ipc_namespace = inode_of("/proc/self/ns/ipc");
  place.mount_namespace = inode_of("/proc/self/ns/mnt");
  place.network_namespace = inode_of("/proc/self/ns/net");
  place.shm_device = device_of("/dev/shm");
  place.monotonic_s = now_on<std::chrono::steady_clock>();
  place.wall_s = now_on<std::chrono::system_clock>();
  return place;
}

Finding check_launcher(const Launch& launch, int ranks) {
  if (ranks == 1 && launch.launcher == Launcher::kNone) {
    return waived("started alone: sharing is tried with this process itself",
                  fmt::format("start it as the update will be: {} awex-colocate doctor",
                              start_command(launch, 2)));
  }
  if (ranks < 2) {
    return failed(
        fmt::format("{} started one rank; an update needs two a GPU", launcher_text(launch)),
        fmt::format("{} awex-colocate doctor", start_command(launch, 2)));
  }
  return passed(fmt::format("{}, {} ranks", launcher_text(launch), ranks));
}

Finding check_mpi() {
  const auto level = mpi_thread_level();
  const bool has_pmix = std::getenv("PMIX_RANK") != nullptr;
  return passed(fmt::format("{}, {}{}", mpi_name(), level, has_pmix ? ", PMIx" : ""));
}

Finding check_namespaces(std::span<const Place> places, size_t me, BackendKind backend) {
  if (const auto other = first_apart(places, me, &Place::pid_namespace)) {
    return failed(
        fmt::format("{} are in different PID namespaces (containers)", pair_text(me, *other)),
        "start both roles in one container, or let their containers share the host's "
        "processes: docker or podman run --pid=host --uts=host, in Kubernetes "
        "shareProcessNamespace: true");
  }
  if (const auto other = first_apart(places, me, &Place::shm_device)) {
    return waived(fmt::format("{} have different file systems at /dev/shm: MPI and NCCL take "
                              "slower ways",
                              pair_text(me, *other)),
                  "let both containers share the host's: docker or podman run --ipc=host, or "
                  "--volume /dev/shm:/dev/shm");
  }
  if (const auto other = first_apart(places, me, &Place::ipc_namespace)) {
    const auto text = fmt::format("{} are in different IPC namespaces", pair_text(me, *other));
    if (backend == BackendKind::kHost) return waived(text + ", which host memory does without");
    return waived(text + ": legacy CUDA IPC may be refused",
                  "docker or podman run --ipc=host, for both roles");
  }
  if (const auto other = first_apart(places, me, &Place::mount_namespace)) {
    return passed(
        fmt::format("PID and IPC shared; {} see different mounts", pair_text(me, *other)));
  }
  return passed("PID, IPC and mount namespaces are shared");
}

Finding check_clock(std::span<const Place> places, size_t me) {
  constexpr double kSameHostSeconds = 10;
  constexpr double kHostsSeconds = 1;
  for (size_t other = 0; other < places.size(); ++other) {
    if (places[other].node != places[me].node) continue;
    const double apart = std::abs(places[other].monotonic_s - places[me].monotonic_s);
    if (apart < kSameHostSeconds) continue;
    return waived(fmt::format("{} are {:.0f} s apart: times in reports will be wrong",
                              pair_text(me, other), apart),
                  "start both roles in one time namespace (unshare --time, or a container that "
                  "was restored elsewhere, sets such an offset)");
  }
  for (const auto& other : places) {
    if (other.node == places[me].node) continue;  // it has one date, read when each rank came to it
    const double apart = std::abs(other.wall_s - places[me].wall_s);
    if (apart < kHostsSeconds) continue;
    return waived(fmt::format("{} and {} are {:.1f} s apart by date", places[me].node.name(),
                              other.node.name(), apart),
                  "let both keep time by NTP: timedatectl set-ntp true");
  }
  return passed(places.size() == 1 ? "monotonic" : "all ranks read the same time");
}

int next_to_try(std::span<const Place> places, size_t me) {
  for (size_t step = 1; step <= places.size(); ++step) {
    const size_t other = (me + step) % places.size();
    const bool visible = places[other].node == places[me].node &&
                         places[other].pid_namespace == places[me].pid_namespace;
    if (other == me) return places.size() == 1 ? static_cast<int>(me) : -1;
    if (visible) return static_cast<int>(other);
  }
  return -1;
}

}  // namespace awex
