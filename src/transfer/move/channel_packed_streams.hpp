#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/checked.hpp"
#include "memory/placed_memory.hpp"
#include "plan/packed_streams.hpp"
#include "transfer/move/channel_steps.hpp"

/// Packed streams as the ends of channels read them, and what those ends note.

namespace awex {

/// Streams whose copies lie in one segment each of the memory that they come from, or go to: the
/// same bytes at the same places, maybe in more copies. Each end cuts for itself.
[[nodiscard]] std::vector<PackedStream> cut_to_send(const std::vector<PackedStream>& streams,
                                                    const PlacedMemory& trainer);
[[nodiscard]] std::vector<PackedStream> cut_to_receive(const std::vector<PackedStream>& streams,
                                                       const PlacedMemory& own);

/// Every stream's first copies by packet, one stream after the other.
[[nodiscard]] std::vector<uint32_t> all_first_copies(const std::vector<PackedStream>& streams);

/// By copy of all streams, one after the other: how many bytes all copies before it have.
[[nodiscard]] std::vector<uint64_t> bytes_before_copies(const std::vector<PackedStream>& streams);

/// The peers that `waits` names (ChannelPass::waits), each once, while ends write to it.
[[nodiscard]] std::vector<uint32_t> late_peers_in(std::span<uint32_t> waits);

/// All packed streams of one direction. `links` has one for each; `descriptors` and
/// `first_descriptors` are of all of them, one after the other, and need not be readable here.
template <class Descriptor>
[[nodiscard]] std::vector<ChannelPackedStream<Descriptor>> channel_packed_streams(
    const std::vector<PackedStream>& streams, const std::vector<PackedStreamLink>& links,
    const Descriptor* descriptors, const uint32_t* first_descriptors) {
  std::vector<ChannelPackedStream<Descriptor>> ready;
  for (size_t i = 0; i < streams.size(); ++i) {
    const auto& one = streams[i];
    ready.push_back({descriptors, first_descriptors, narrow<uint32_t>(one.copies.size()), one.peer,
                     one.bytes(), links.at(i)});
    descriptors += one.copies.size();
    first_descriptors += packets_of(one.bytes());
  }
  return ready;
}

}  // namespace awex
