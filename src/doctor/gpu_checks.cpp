#include "doctor/gpu_checks.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "transfer/move/nccl_library.hpp"

namespace awex {
namespace {

std::string cuda_version(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string nccl_version(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

/// Of what is missing: an error where a GPU was asked for.
Finding missing(std::optional<BackendKind> requested, const char* reason, const char* remedy) {
  return requested == BackendKind::kCuda ? failed(reason, remedy) : waived(reason);
}

}  // namespace

Finding waived_without_gpu(std::optional<BackendKind> requested) {
  if (requested == BackendKind::kHost) return waived("--backend host needs no GPU");
  return waived(requested ? "not tried: there is no GPU to try it on"
                          : "the host backend, which needs no GPU");
}

Finding check_driver(std::optional<BackendKind> requested, const CudaVersions& found) {
  if (requested == BackendKind::kHost) return waived_without_gpu(requested);
  if (found.runtime == 0) {
    return missing(requested, "this binary was built without CUDA",
                   "build it where nvcc, the CUDA Toolkit and NCCL are found, or choose --backend "
                   "host");
  }
  if (found.driver == 0) {
    return missing(requested, "no CUDA driver is found",
                   "install NVIDIA's driver, or let the container have it (docker --gpus all); "
                   "nvidia-smi must list the GPUs; or choose --backend host");
  }
  const auto both = fmt::format("driver for CUDA {}, binary built with {}",
                                cuda_version(found.driver), cuda_version(found.runtime));
  auto finding = found.driver / 1000 < found.runtime / 1000
                     ? failed(both, "install a newer driver, or build with an older CUDA Toolkit")
                     : passed(both);
  finding = with_value(std::move(finding), "driver_version", found.driver);
  return with_value(std::move(finding), "runtime_version", found.runtime);
}

Finding check_grant(std::optional<BackendKind> requested, const std::string& granted, int seen,
                    const std::string& why_none) {
  if (requested == BackendKind::kHost) return waived_without_gpu(requested);
  if (seen > 0) {
    const auto text = granted.empty() ? "" : fmt::format(" ({})", granted);
    return with_value(passed(fmt::format("{} seen{}", seen, text)), "gpus", seen);
  }
  if (!granted.empty()) {
    return with_value(
        failed(fmt::format("granted ({}), but none is seen: {}", granted, why_none),
               "let the ranks have them: nvidia-smi must list them inside of the container, and "
               "the binary must have CUDA (awex-colocate --version); --backend host says that "
               "host memory is meant"),
        "gpus", 0);
  }
  return with_value(missing(requested, ("none: " + why_none).c_str(),
                            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or choose --backend host"),
                    "gpus", 0);
}

Finding check_capability(const GpuFacts& gpu) {
  constexpr int kLeastMajor = 8;
  const auto text = fmt::format("{}, compute capability {}.{}", gpu.identity.name,
                                gpu.capability_major, gpu.capability_minor);
  if (gpu.capability_major < kLeastMajor) {
    return failed(text, "an update needs a GPU of compute capability 8.0 or newer");
  }
  return passed(text + ", exports memory");
}

Finding check_peer_access(std::span<const Peer> peers, size_t me) {
  const auto& mine = peers[me];
  std::set<std::array<uint8_t, 16>> gpus;
  std::vector<int> unreached;
  for (const auto& peer : peers) {
    if (peer.node != mine.node || !gpus.insert(peer.device.uuid).second) continue;
    if (!gpu_reaches(mine.device.index, peer.device)) unreached.push_back(peer.rank);
  }
  if (gpus.size() == 1) return passed("one GPU on this host");
  if (unreached.empty()) return passed(fmt::format("reaches all {} GPUs of its host", gpus.size()));
  return waived(
      fmt::format("does not reach the GPUs of ranks {}: NCCL serves", fmt::join(unreached, ", ")),
      "show all GPUs to all ranks (CUDA_VISIBLE_DEVICES; srun without --gpus-per-task); "
      "nvidia-smi topo -m tells which links there are");
}

Finding check_nccl() {
  const auto versions = nccl_versions();
  if (!versions) return waived("this binary was built without NCCL");
  const auto loaded = nccl_version(versions->loaded);
  auto finding = versions->loaded / 10000 < versions->built / 10000
                     ? failed(fmt::format("{}, older than {}, which the binary was built with",
                                          loaded, nccl_version(versions->built)),
                              "let LD_LIBRARY_PATH find the library that the binary was built with")
                     : passed(loaded);
  return with_value(std::move(finding), "version", versions->loaded);
}

}  // namespace awex
