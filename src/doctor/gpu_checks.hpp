#pragma once

#include <optional>
#include <span>
#include <string>

#include "comm/job.hpp"
#include "doctor/finding.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"

/// What only GPUs need. `requested` is the backend that the user asked for; absent: auto.

namespace awex {

/// Driver and runtime versions.
[[nodiscard]] Finding check_driver(std::optional<BackendKind> requested, const CudaVersions& found);
/// Whether GPUs that the environment grants can be seen. `granted` is granted_gpus(); `why_none`
/// is of use where `seen` is 0.
[[nodiscard]] Finding check_grant(std::optional<BackendKind> requested, const std::string& granted,
                                  int seen, const std::string& why_none);
/// Of a device that could be opened, which has virtual memory management and exports descriptors.
[[nodiscard]] Finding check_capability(const GpuFacts& gpu);
/// Whether this rank's GPU reaches the others of its host. Asks the driver.
[[nodiscard]] Finding check_peer_access(std::span<const Peer> peers, size_t me);
/// NCCL's library.
[[nodiscard]] Finding check_nccl();
/// Why a check that only GPUs need is not made.
[[nodiscard]] Finding waived_without_gpu(std::optional<BackendKind> requested);

}  // namespace awex
