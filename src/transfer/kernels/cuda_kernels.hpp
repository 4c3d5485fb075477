#pragma once

#include <memory>

#include "memory/device.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// Kernels on a stream of their own of a cuda device, which must be open in this thread. Preparing
/// a batch takes device memory for its descriptors: 4 bytes for each 32 KiB of items (proven
/// copies: of copies and of views), for each 16,384 converted elements and for each scale, and
/// about 100 bytes an item. Destroying a batch or the kernels waits for their queued work: with
/// a round of an exchange in flight, for ever if a peer has failed.
[[nodiscard]] std::unique_ptr<Kernels> make_cuda_kernels(Device& device);

}  // namespace awex
