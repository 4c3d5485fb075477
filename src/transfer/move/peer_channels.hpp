#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "memory/device.hpp"
#include "memory/placed_memory.hpp"
#include "plan/packed_streams.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/channel_steps.hpp"

namespace awex {

/// The packed streams of one direction, and a link for each.
struct LinkedPackedStreams {
  std::vector<PackedStream> streams;
  std::vector<PackedStreamLink> links;
};

/// What serves the ends of a rank's channels, for PeerCopies: a kernel's blocks on cuda, threads on
/// host. Addresses are of the device.
///
/// A pass is under way from `copy` or `compare` until `is_done`; there is one at a time. It ends
/// when all ranks have begun the same pass, or when it is told to `stop`.
class PeerChannels {
 public:
  PeerChannels() = default;
  PeerChannels(const PeerChannels&) = delete;
  PeerChannels& operator=(const PeerChannels&) = delete;
  PeerChannels(PeerChannels&&) = delete;
  PeerChannels& operator=(PeerChannels&&) = delete;
  /// Stops what is under way and lets it end.
  virtual ~PeerChannels() = default;

  /// Sets memory of the device to zero. Done on return.
  virtual void clear(std::byte* memory, uint64_t bytes) = 0;
  /// `trainer` is the memory that is sent from, `own` the one that is received into; each copy of
  /// the streams lies in one segment. Before anything below, and again while no pass is under way.
  virtual void prepare(const LinkedPackedStreams& sends, const PlacedMemory& trainer,
                       const LinkedPackedStreams& receives, const PlacedMemory& own) = 0;

  /// Begins a pass, whose counts begin with `base`: brings all bytes.
  virtual void copy(ChannelCount base) = 0;
  /// The same, but compares all bytes with what is there.
  virtual void compare(ChannelCount base) = 0;
  /// Whether nobody but the device orders a pass with work that comes after it. If not, what comes
  /// after it begins when it is done.
  [[nodiscard]] virtual bool is_in_order() const = 0;
  /// Whether the pass has ended and, where it is in order with it, the work on the main stream.
  [[nodiscard]] virtual bool is_done() = 0;

  /// Lets every end that waits give up, for good: passes end, unfinished, as fast as the device
  /// sees it. Does not wait, never fails. Counts stay as they are.
  virtual void stop() noexcept = 0;
  /// Takes `stop` back. Nothing must be under way.
  virtual void go_on() = 0;

  /// Inference role ranks for which ends have waited for long.
  [[nodiscard]] virtual std::vector<uint32_t> late_peers() const = 0;
  /// After a comparison: the position of the first byte that differs among all that is received.
  [[nodiscard]] virtual std::optional<uint64_t> difference() const = 0;
};

/// How many channels of each direction a device serves at once, for all its inference ranks
/// together; kMostChannels at most.
[[nodiscard]] uint32_t channels_at_once(const Device& device);
/// Whether a device can map memory of another one on this host.
[[nodiscard]] bool reaches(const Device& device, const DeviceIdentity& other);

/// The channels of a rank on `device`, `channels` of each direction. `kernels` must outlive them.
[[nodiscard]] std::unique_ptr<PeerChannels> make_peer_channels(const Device& device,
                                                               Kernels& kernels, uint32_t channels);

}  // namespace awex
