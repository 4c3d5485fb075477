#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/job.hpp"
#include "memory/device.hpp"

namespace awex {

/// Why an inference rank's device cannot take part in peer copies ("rank 5 (…) cannot map memory of
/// rank 4 (…): they are on different hosts"); nothing where all can. Collective over all ranks,
/// which get equal answers.
[[nodiscard]] std::optional<std::string> find_unreachable_peer(Job& job, Device& device);

/// Channels of each direction that every inference rank's device runs at once; kMostChannels at
/// most, kPackedStreamsAtOnce at least where no peer is unreachable. Collective over all ranks,
/// which get equal answers.
[[nodiscard]] uint32_t agree_on_channels(Job& job, const Device& device);

}  // namespace awex
