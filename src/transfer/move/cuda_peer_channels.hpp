#pragma once

#include <cstdint>
#include <memory>

#include "transfer/move/peer_channels.hpp"

namespace awex {

/// Channels that a GPU runs at once, each with a block of threads for either end. Opens the GPU.
[[nodiscard]] uint32_t cuda_channels_at_once(const Device& device);

/// One launch for each pass, on Stream::kSend of `kernels`, which must be cuda's.
[[nodiscard]] std::unique_ptr<PeerChannels> make_cuda_channels(Kernels& kernels, uint32_t channels);

}  // namespace awex
