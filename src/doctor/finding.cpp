#include "doctor/finding.hpp"

namespace awex {

const char* check_name(Check check) {
  switch (check) {
    case Check::kLauncher:
      return "launcher";
    case Check::kMpi:
      return "mpi";
    case Check::kNamespaces:
      return "namespaces";
    case Check::kClock:
      return "clock";
    case Check::kGpuGrant:
      return "gpus granted";
    case Check::kDriver:
      return "cuda driver";
    case Check::kBackend:
      return "backend";
    case Check::kRoles:
      return "roles";
    case Check::kDevice:
      return "device memory";
    case Check::kPairing:
      return "gpu pairing";
    case Check::kPidfd:
      return "pidfd_getfd";
    case Check::kSocket:
      return "scm_rights";
    case Check::kSharedMemory:
      return "memory sharing";
    case Check::kLegacyIpc:
      return "legacy ipc";
    case Check::kPeerAccess:
      return "peer access";
    case Check::kNccl:
      return "nccl";
    case Check::kMemfd:
      return "memfd";
    case Check::kLockedMemory:
      return "locked memory";
    case Check::kOpenFiles:
      return "open files";
    case Check::kHostMemory:
      return "host memory";
    case Check::kDevShm:
      return "/dev/shm";
    case Check::kHugePages:
      return "huge pages";
    case Check::kBinding:
      return "cores and numa";
    case Check::kPtraceScope:
      return "ptrace scope";
    case Check::kSpeed:
      return "link speeds";
  }
  return "unknown";
}

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPassed:
      return "passed";
    case Verdict::kWaived:
      return "waived";
    case Verdict::kFailed:
      return "failed";
  }
  return "unknown";
}

}  // namespace awex
