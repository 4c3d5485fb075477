#pragma once

#include <cstdint>
#include <memory>

#include "transfer/move/exchange.hpp"

namespace awex {

/// The exchange over NCCL, in one communicator of all inference ranks; null on trainer ranks. Takes
/// kStagingBytes of device memory: two buffers of messages in each direction, so that one round is
/// packed and another unpacked while a third is under way. Collective over all ranks of the job,
/// which must know its peers. `kernels` must be cuda's; all arguments must outlive the exchange.
///
/// Destroying it aborts what is still in flight and waits for no peer; batches and kernels, which
/// wait for their streams, can be destroyed after it.
[[nodiscard]] std::unique_ptr<Exchange> make_nccl_exchange(Job& job, Device& device,
                                                           Kernels& kernels);

/// Lets inference ranks that share one GPU join one communicator, for tests: NCCL takes processes
/// of different host identities for different hosts, and then goes over sockets. Sets an
/// environment variable: call it before the first use of NCCL.
void let_nccl_share_gpu(int rank);

}  // namespace awex
