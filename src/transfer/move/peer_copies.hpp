#pragma once

#include <memory>

#include "transfer/move/remote_copies.hpp"

namespace awex {

/// The remote copies of devices that reach each other: GPUs (NVLink, PCIe), or host devices of one
/// machine; null on trainer ranks. One launch does all: the sender's blocks pack straight into
/// slots in the receiver's memory, which takes one way over the link and no step between, and the
/// receiver's unpack them from there (plan/channels.hpp). Takes 34 MiB of device memory and maps
/// all other inference ranks', once. Collective over all ranks of the job; there must be no
/// unreachable peer.
///
/// Both ends keep in step by counts in device memory that only grow; no host looks on.
[[nodiscard]] std::unique_ptr<RemoteCopies> make_peer_copies(Job& job, Device& device,
                                                             Kernels& kernels);

}  // namespace awex
