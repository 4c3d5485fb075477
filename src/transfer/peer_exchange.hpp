#pragma once

#include <memory>
#include <optional>
#include <string>

#include "transfer/exchange.hpp"

namespace awex {

/// Why an inference rank's device cannot map memory of another's ("rank 5 (…) and rank 4 (…) are on
/// different hosts"); nothing where all can. Collective over all ranks, which get equal answers.
[[nodiscard]] std::optional<std::string> find_unreachable_peer(Job& job, Device& device);

/// The exchange of GPUs that reach each other (NVLink, PCIe); null on trainer ranks. The sender's
/// kernels pack messages straight into buffers in the receiver's memory, which takes one way over
/// the link and no step between; the receiver unpacks them from there. Takes kStagingBytes of
/// device memory and maps all other inference ranks', once. Collective over all ranks of the job,
/// which must know its peers; there must be no unreachable one. `kernels` must be cuda's; all
/// arguments must outlive the exchange.
///
/// Both ends keep in step by signals, numbers in device memory that only grow: small kernels on the
/// lanes tell the other end that a message has arrived or that its place is free (granted:
/// transfer/grants.hpp), and wait for such; no host looks on. After a failure lanes may wait for
/// ever: end the process, do not destroy the exchange.
[[nodiscard]] std::unique_ptr<Exchange> make_peer_exchange(Job& job, Device& device,
                                                           Kernels& kernels);

}  // namespace awex
