#pragma once

#include <cstdint>

/// How the bytes that GPUs write into each other's memory are cut and shared out, in terms that
/// both ends, and nvcc and the host compiler, share. All of it is pure.
///
/// What goes from one rank to another is a packed stream, cut into packets. Every rank has channels
/// for what it sends and as many for what it receives; a block of threads serves each. Channel c of
/// a sender carries packets to channel c of the receiver, which has kChannelSlots places for them
/// in its staging memory. So all waiting is between two blocks, and a rank's channels together keep
/// a link busy while each of them waits, packs and unpacks in turn.

namespace awex {

/// The most channels of a rank in each direction. All ranks have as many as the smallest of their
/// GPUs runs at once, but no fewer than kPackedStreamsAtOnce.
inline constexpr uint32_t kMostChannels = 64;
inline constexpr uint32_t kChannelSlots = 2;
inline constexpr uint32_t kPacketBytes = 256U << 10;
/// All slots of the channels that a rank receives on, at the begin of its staging memory: those of
/// channel 0, then those of channel 1, and so on.
inline constexpr uint64_t kSlotsBytes = uint64_t{kMostChannels} * kChannelSlots * kPacketBytes;
/// Packed streams, one for each peer, that share a rank's channels at a time: all of a machine with
/// eight GPUs or fewer.
inline constexpr uint32_t kPackedStreamsAtOnce = 8;
/// Copies begin in a packed stream at multiples of this many bytes, and packets do too, so that no
/// unit of a copy lies in two packets.
inline constexpr uint64_t kPackedStreamAlignment = 32;
static_assert(kPacketBytes % kPackedStreamAlignment == 0);
static_assert(kPackedStreamsAtOnce <= kMostChannels);

/// Which packets of which packed stream a channel carries: `first_packet` and every
/// `packet_step`-th from there on, each in the slot after the last one's.
struct ChannelShare {
  uint32_t stream = 0;
  uint32_t first_packet = 0;
  uint32_t packet_step = 0;
};

/// A rank goes through its packed streams in groups of kPackedStreamsAtOnce.
[[nodiscard]] constexpr uint32_t packed_stream_groups(uint32_t streams) {
  return (streams + kPackedStreamsAtOnce - 1) / kPackedStreamsAtOnce;
}

/// The share of channel `channel` of `channels` in a group of a rank's packed streams.
[[nodiscard]] constexpr ChannelShare channel_share(uint32_t group, uint32_t streams,
                                                   uint32_t channel, uint32_t channels) {
  const uint32_t first = group * kPackedStreamsAtOnce;
  const uint32_t sharing =
      streams - first < kPackedStreamsAtOnce ? streams - first : kPackedStreamsAtOnce;
  const uint32_t which = channel % sharing;
  return {first + which, channel / sharing, (channels - which + sharing - 1) / sharing};
}

[[nodiscard]] constexpr uint32_t packets_of(uint64_t stream_bytes) {
  return static_cast<uint32_t>((stream_bytes + kPacketBytes - 1) / kPacketBytes);
}

}  // namespace awex
