#include "transfer/move/peer_reach.hpp"

#include <algorithm>
#include <vector>

#include "plan/channels.hpp"
#include "transfer/move/peer_channels.hpp"

namespace awex {
namespace {

/// Channels that this rank's device runs at once for each of its inference ranks: where they do not
/// take turns, all of them must find room. Threads of the host take turns.
uint32_t channels_on(const Job& job, const Device& device) {
  const uint32_t channels = channels_at_once(device);
  if (device.kind() == BackendKind::kHost) return channels;
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  const auto sharing = std::count_if(job.peers().begin(), job.peers().end(), [&](const Peer& peer) {
    return peer.role == Role::kInference && peer.node == me.node &&
           peer.device.uuid == me.device.uuid;
  });
  return channels / static_cast<uint32_t>(sharing);
}

/// The first rank whose memory this inference rank cannot write, itself if its GPU is too small.
std::optional<int> find_obstacle(Job& job, Device& device) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  if (me.role == Role::kTrainer) return std::nullopt;
  if (channels_on(job, device) < kPackedStreamsAtOnce) return me.rank;
  for (const auto& peer : job.peers()) {
    if (peer.role == Role::kTrainer || peer.rank == me.rank) continue;
    const bool reached = peer.node == me.node && reaches(device, peer.device);
    if (!reached) return peer.rank;
  }
  return std::nullopt;
}

std::string describe_obstacle(const Peer& one, const Peer& other) {
  if (one.rank == other.rank) {
    return one.describe() + " has too few multiprocessors to serve enough peers at once";
  }
  return fmt::format("{} cannot map memory of {}: {}", one.describe(), other.describe(),
                     one.node == other.node
                         ? "the one does not see the other's GPU, or no link joins them"
                         : "they are on different hosts");
}

}  // namespace

std::optional<std::string> find_unreachable_peer(Job& job, Device& device) {
  const int32_t obstacle = find_obstacle(job, device).value_or(-1);
  const auto all = job.all_gather_value(obstacle, "which GPUs reach each other");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] < 0) continue;
    return describe_obstacle(job.peers().at(rank), job.peers().at(static_cast<size_t>(all[rank])));
  }
  return std::nullopt;
}

uint32_t agree_on_channels(Job& job, const Device& device) {
  const bool takes_part = job.peers().at(static_cast<size_t>(job.rank())).role != Role::kTrainer;
  const uint32_t own = takes_part ? channels_on(job, device) : kMostChannels;
  const auto all = job.all_gather_value(own, "how many channels GPUs run at once");
  return *std::min_element(all.begin(), all.end());
}

}  // namespace awex
