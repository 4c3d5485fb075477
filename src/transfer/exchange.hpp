#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "comm/job.hpp"
#include "memory/device.hpp"
#include "transfer/kernels.hpp"

namespace awex {

/// A contiguous run of device memory on its way to or from one inference rank.
struct Message {
  uint32_t peer = 0;  ///< Role rank among the inference ranks; never the caller itself.
  std::byte* data = nullptr;
  uint64_t bytes = 0;  ///< > 0.
};

/// Moves bytes between the inference ranks of a job (NCCL on cuda, MPI on host). Trainer ranks have
/// none: NCCL spans GPUs, not ranks, and two ranks of one GPU cannot join one communicator.
class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  Exchange(Exchange&&) = delete;
  Exchange& operator=(Exchange&&) = delete;
  virtual ~Exchange() = default;

  /// Does one round: at most one send and one receive a peer, sizes agreed on by both sides before.
  /// On cuda the round is one NCCL group, ordered with the kernels' stream: it begins after the
  /// work queued there, and work queued there later begins after it. On host it is done on return.
  /// Throws Error(kDeadline) that names the peers still missing, and what the job's poll throws.
  virtual void round(std::span<const Message> sends, std::span<const Message> receives) = 0;

  /// Waits until all rounds and all the kernels' work are done, watching the exchange's
  /// asynchronous errors.
  virtual void wait() = 0;
};

/// The exchange for this job's backend; null on trainer ranks. Collective over all ranks (trainers
/// take part in making it). `job` must know its peers. `share_gpu` says that several inference
/// ranks may be on one GPU, which NCCL otherwise refuses.
[[nodiscard]] std::unique_ptr<Exchange> make_exchange(Job& job, Device& device, Kernels& kernels,
                                                      bool share_gpu);

}  // namespace awex
