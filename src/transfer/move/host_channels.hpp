#pragma once

#include <cstdint>
#include <memory>

#include "transfer/move/peer_channels.hpp"

namespace awex {

/// Of each direction and rank, whatever the machine: threads that wait give the processor away.
inline constexpr uint32_t kHostChannels = kPackedStreamsAtOnce;

/// The host's twin of a GPU's channels: the same steps (channel_steps.hpp), by a thread for each
/// end, over memory that processes share. Threads begin with a pass and end with it; so a pass is
/// not in order with other work. Needs no MPI: ranks may also be objects of one process.
[[nodiscard]] std::unique_ptr<PeerChannels> make_host_channels(uint32_t channels);

}  // namespace awex
