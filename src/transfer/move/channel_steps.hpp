#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/channels.hpp"

/// What both ends of a channel do, step by step, for every backend: the CUDA kernel's blocks of
/// threads and the host's threads run this one text (plan/channels.hpp says what channels are). In
/// terms that nvcc and the host compiler share.

namespace awex {

/// A number by which two ends tell each other how far they are in a channel. It only grows, but
/// wraps around.
using ChannelCount = uint32_t;

[[nodiscard]] constexpr bool has_come_to(ChannelCount count, ChannelCount value) {
  return static_cast<int32_t>(count - value) >= 0;
}

/// What a pass adds to counts is less, so that later passes have larger ones: as many packets are
/// more than the memory of a device.
inline constexpr ChannelCount kCountsOfPass = 1U << 20;

/// What the two ends of a packed stream share, for each its own addresses of the same memory.
struct PackedStreamLink {
  std::byte* slots = nullptr;       ///< The receiver's staging memory.
  ChannelCount* arrived = nullptr;  ///< At the receiver, by channel: packets that have come.
  ChannelCount* granted = nullptr;  ///< At the sender: packets that there is, or was, a slot for.
};

/// All that goes to, or comes from, one peer. A descriptor says how a backend moves a copy of the
/// stream, whose bytes lie in it from `begin` to before `end`.
template <class Descriptor>
struct ChannelPackedStream {
  const Descriptor* descriptors = nullptr;      ///< By place in the stream.
  const uint32_t* first_descriptors = nullptr;  ///< By packet: of its first copy.
  uint32_t descriptor_count = 0;
  uint32_t peer = 0;   ///< Inference role rank.
  uint64_t bytes = 0;  ///< Of the stream.
  PackedStreamLink link;
};

/// One pass through all streams of a rank, which has the same number of both directions.
template <class Descriptor>
struct ChannelPass {
  const ChannelPackedStream<Descriptor>* sends = nullptr;
  const ChannelPackedStream<Descriptor>* receives = nullptr;
  uint32_t streams = 0;         ///< Of each direction.
  uint32_t channels = 0;        ///< Of each direction.
  ChannelCount base = 0;        ///< What this pass's counts begin with.
  uint32_t* waits = nullptr;    ///< kChannelWaits, of the host's memory.
  uint32_t* stop = nullptr;     ///< Of the host's memory: not 0 when waits are to end at once.
  uint64_t* differs = nullptr;  ///< Position of the first differing byte, for a comparison.
};

/// Each end's place in ChannelPass::waits: 1 + the rank for which it has waited for long, else 0.
inline constexpr uint32_t kChannelWaits = 2 * kMostChannels;

enum class ChannelEnd : uint8_t { kSender, kReceiver };

[[nodiscard]] constexpr uint32_t wait_of(ChannelEnd end, uint32_t channel) {
  return end == ChannelEnd::kSender ? channel : kMostChannels + channel;
}

/// Calls work(descriptor, from, to, at) for all descriptors' bytes in a packet: bytes [from, to) of
/// the descriptor, whose first one lies at `at` in the slot.
template <class Descriptor, class Work>
constexpr void for_each_part(const ChannelPackedStream<Descriptor>& stream, uint32_t packet,
                             std::byte* slot, const Work& work) {
  const uint64_t begin = uint64_t{packet} * kPacketBytes;
  const uint64_t end = begin + kPacketBytes;
  for (uint32_t i = stream.first_descriptors[packet]; i < stream.descriptor_count; ++i) {
    const Descriptor& descriptor = stream.descriptors[i];
    if (descriptor.begin >= end) return;
    const uint64_t from = descriptor.begin < begin ? begin : descriptor.begin;
    const uint64_t to = descriptor.end < end ? descriptor.end : end;
    work(descriptor, static_cast<uint32_t>(from - descriptor.begin),
         static_cast<uint32_t>(to - descriptor.begin), slot + (from - begin));
  }
}

/// One end's part of a channel in one stream; false when it was stopped. A block does
///   await(count, value, peer): returns true when `*count` has come to `value`, and then sees what
///     its writer stored before; false when it was stopped first;
///   treat(stream, packet, slot): packs a packet into a slot, or unpacks or compares it;
///   tell(count, value): sets `*count`, behind all that the block has loaded and stored.
template <ChannelEnd kEnd, class Descriptor, class Block>
constexpr bool go_through(const ChannelPass<Descriptor>& pass, const ChannelShare& share,
                          uint32_t channel, const Block& block) {
  constexpr bool kSends = kEnd == ChannelEnd::kSender;
  const ChannelPackedStream<Descriptor>& stream =
      (kSends ? pass.sends : pass.receives)[share.stream];
  const uint32_t packets = packets_of(stream.bytes);
  if (share.first_packet >= packets) return true;
  ChannelCount* arrived = stream.link.arrived + channel;
  ChannelCount* granted = stream.link.granted + channel;
  std::byte* slots = stream.link.slots + uint64_t{channel} * kChannelSlots * kPacketBytes;
  if (!kSends) block.tell(granted, pass.base + kChannelSlots);
  uint32_t count = 0;
  for (uint32_t packet = share.first_packet; packet < packets; packet += share.packet_step) {
    std::byte* slot = slots + uint64_t{count % kChannelSlots} * kPacketBytes;
    ++count;
    if (!block.await(kSends ? granted : arrived, pass.base + count, stream.peer)) return false;
    block.treat(stream, packet, slot);
    block.tell(kSends ? arrived : granted, pass.base + count + (kSends ? 0 : kChannelSlots));
  }
  return true;
}

/// One end's whole pass through a channel; false when it was stopped.
template <ChannelEnd kEnd, class Descriptor, class Block>
constexpr bool serve_channel(const ChannelPass<Descriptor>& pass, uint32_t channel,
                             const Block& block) {
  for (uint32_t group = 0; group < packed_stream_groups(pass.streams); ++group) {
    const ChannelShare share = channel_share(group, pass.streams, channel, pass.channels);
    if (!go_through<kEnd>(pass, share, channel, block)) return false;
  }
  return true;
}

}  // namespace awex
