#include "transfer/move/peer_copies.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "plan/channels.hpp"
#include "plan/packed_streams.hpp"
#include "transfer/move/channel_packed_streams.hpp"
#include "transfer/move/peer_channels.hpp"
#include "transfer/move/peer_reach.hpp"
#include "transfer/share/fd_exchange.hpp"
#include "transfer/share/offered_range.hpp"

namespace awex {
namespace {

using Counts = std::array<ChannelCount, kMostChannels>;

/// What a rank's staging memory holds about each other rank, behind the slots.
struct PeerCounts {
  Counts arrived{};  ///< Written by the peer: its packets that have come.
  Counts granted{};  ///< Written by the peer: packets to it that there is, or was, a slot for.
};

constexpr uint64_t kCountsBytes = 2ULL << 20;
constexpr uint64_t kPeerStagingBytes = kSlotsBytes + kCountsBytes;
static_assert(kPeerStagingBytes <= kStagingBytes);
constexpr uint64_t kMostRanks = kCountsBytes / sizeof(PeerCounts);

class PeerCopies final : public RemoteCopies {
 public:
  PeerCopies(Job& job, Device& device, Kernels& kernels, uint32_t channels)
      : job_(job),
        ranks_(ranks_of(job.peers(), Role::kInference)),
        me_(job.peers().at(static_cast<size_t>(job.rank())).role_rank),
        staging_(device.reserve("staging memory", kPeerStagingBytes)),
        peers_(ranks_.size()),
        channels_(make_peer_channels(device, kernels, channels)) {
    if (ranks_.size() > kMostRanks) {
      throw runtime_error(fmt::format("cannot exchange with {} inference ranks: there is room for "
                                      "the counts of {}",
                                      ranks_.size(), kMostRanks),
                          "--exchange nccl has no such limit");
    }
    staging_->take_chunks(0, staging_->chunks());
    channels_->clear(staging_->data() + kSlotsBytes, kCountsBytes);
  }

  [[nodiscard]] DeviceRange& staging() const { return *staging_; }

  void map(uint32_t peer, Device& device, const OfferedRange& offered, std::vector<UniqueFd> fds) {
    auto& mapped = peers_.at(peer);
    mapped = device.reserve_mapping(fmt::format("staging memory of inference rank {}", peer),
                                    offered.bytes, offered.chunk_bytes, MappedAccess::kReadWrite);
    mapped->map(std::move(fds));
  }

  void prepare(const ExchangedCopies& copies, const PlacedMemory& trainer_weights,
               const PlacedMemory& own_weights) override {
    LinkedPackedStreams sends{cut_to_send(streams_to_send(copies), trainer_weights), {}};
    for (const auto& stream : sends.streams) sends.links.push_back(link_to(stream.peer));
    LinkedPackedStreams receives{cut_to_receive(streams_to_receive(copies), own_weights), {}};
    for (const auto& stream : receives.streams) receives.links.push_back(link_from(stream.peer));
    channels_->prepare(sends, trainer_weights, receives, own_weights);
    received_.clear();
    first_bytes_ = bytes_before_copies(receives.streams);
    for (const auto& stream : receives.streams) {
      for (const auto& copy : stream.copies) received_.push_back(copy.copy);
    }
  }

  void connect() override {}  // every peer's memory is mapped, and the kernels are loaded

  void copy() override { begin(&PeerChannels::copy); }
  void compare() override { begin(&PeerChannels::compare); }

  void wait() override { wait_for_pass(); }

  [[nodiscard]] std::optional<uint64_t> difference() const override {
    const auto position = channels_->difference();
    if (!position) return std::nullopt;
    const auto after = std::upper_bound(first_bytes_.begin(), first_bytes_.end(), *position);
    const auto index = static_cast<size_t>(after - first_bytes_.begin()) - 1;
    const auto& copy = received_.at(index);
    const uint64_t byte = *position - first_bytes_[index];
    return copy.target_byte(byte / copy.row_bytes, byte % copy.row_bytes);
  }

  void abort(const Deadline& deadline) override {
    stop();
    NoMonitor nobody;
    wait_until([this] { return channels_->is_done(); }, "the end of the exchange of weights",
               deadline, nobody);
  }

  /// Counts of passes that were broken off stay: all ranks go on behind the largest that any of
  /// them has begun. Nobody writes older ones any more when all have told theirs.
  void rebuild() override {
    if (!channels_->is_done()) {
      throw runtime_error("peer copies cannot be rebuilt while some are under way",
                          "this is a fault of awex-colocate: please report it");
    }
    for (const ChannelCount base : bases_of_all()) {
      if (has_come_to(base, base_)) base_ = base;
    }
    channels_->go_on();
    is_stopped_ = false;
  }

  [[nodiscard]] uint64_t staging_bytes() const override { return staging_->held_bytes(); }

 private:
  static PeerCounts& counts_in(std::byte* staging, uint32_t about) {
    return reinterpret_cast<PeerCounts*>(staging + kSlotsBytes)[about];
  }
  [[nodiscard]] PeerCounts& own_counts(uint32_t peer) const {
    return counts_in(staging_->data(), peer);
  }
  /// At a peer, about a rank. An address of the device, as the one above.
  [[nodiscard]] PeerCounts& counts_at(uint32_t peer, uint32_t about) const {
    return counts_in(peers_.at(peer)->data(), about);
  }

  [[nodiscard]] PackedStreamLink link_to(uint32_t peer) const {
    return {peers_.at(peer)->data(), counts_at(peer, me_).arrived.data(),
            own_counts(peer).granted.data()};
  }
  [[nodiscard]] PackedStreamLink link_from(uint32_t peer) const {
    return {staging_->data(), own_counts(peer).arrived.data(), counts_at(peer, me_).granted.data()};
  }

  void begin(void (PeerChannels::*pass)(ChannelCount)) {
    if (is_stopped_) {
      throw runtime_error("peer copies were aborted and not rebuilt",
                          "this is a fault of awex-colocate: please report it");
    }
    base_ += kCountsOfPass;
    (*channels_.*pass)(base_);
    if (!channels_->is_in_order()) wait_for_pass();
  }

  /// Whatever ends the wait too early also stops what is under way.
  void wait_for_pass() {
    try {
      job_.wait_for([this] { return channels_->is_done(); },
                    [this] {
                      return Late{late_ranks(), "finished the exchange of weights"};
                    });
    } catch (...) {
      stop();
      throw;
    }
  }

  void stop() noexcept {
    is_stopped_ = true;
    channels_->stop();
  }

  [[nodiscard]] std::vector<ChannelCount> bases_of_all() {
    std::vector<ChannelCount> bases(ranks_.size(), base_);
    const auto own = std::as_bytes(std::span(&base_, 1));
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (uint32_t peer = 0; peer < ranks_.size(); ++peer) {
      if (peer == me_) continue;
      outgoing.push_back({ranks_[peer], own});
      incoming.push_back({ranks_[peer], std::as_writable_bytes(std::span(&bases[peer], 1))});
    }
    job_.exchange(outgoing, incoming, "the rebuilding of peer copies");
    return bases;
  }

  /// Those for whom the device has waited for long; this rank itself if for none.
  [[nodiscard]] std::vector<int> late_ranks() const {
    std::vector<int> ranks;
    for (const uint32_t peer : channels_->late_peers()) ranks.push_back(ranks_.at(peer));
    if (ranks.empty()) return {job_.rank()};
    std::sort(ranks.begin(), ranks.end());
    return ranks;
  }

  Job& job_;
  std::vector<int> ranks_;  ///< World ranks of all inference ranks, by role rank.
  uint32_t me_;             ///< Role rank.
  std::unique_ptr<DeviceRange> staging_;
  std::vector<std::unique_ptr<MappedChunks>> peers_;  ///< Their staging memory, by role rank.
  std::unique_ptr<PeerChannels> channels_;            ///< Ends before the memory that it writes.
  std::vector<MergedCopy> received_;                  ///< Copy by copy of all streams.
  std::vector<uint64_t> first_bytes_;                 ///< Their places among all that is received.
  ChannelCount base_ = 0;                             ///< Of the last pass.
  bool is_stopped_ = false;
};

/// All pairs of ranks in one order, so that none waits for another in a circle.
void map_all(Job& job, Device& device, const std::vector<OfferedRange>& offers,
             PeerCopies& copies) {
  const auto ranks = ranks_of(job.peers(), Role::kInference);
  for (uint32_t giver = 0; giver < ranks.size(); ++giver) {
    const auto& offered = offers.at(static_cast<size_t>(ranks[giver]));
    const auto what = fmt::format("the staging memory of {}", job.describe(ranks[giver]));
    for (const int taker : ranks) {
      if (taker == ranks[giver]) continue;
      if (job.rank() == ranks[giver]) hand_out_fds(job, taker, offered.numbers(), what);
      if (job.rank() != taker) continue;
      copies.map(giver, device, offered, take_fds(job, ranks[giver], offered.numbers(), what));
    }
  }
}

}  // namespace

std::unique_ptr<RemoteCopies> make_peer_copies(Job& job, Device& device, Kernels& kernels) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  const uint32_t channels = agree_on_channels(job, device);
  std::unique_ptr<PeerCopies> copies;
  OfferedRange own;
  if (me.role == Role::kInference) {
    copies = std::make_unique<PeerCopies>(job, device, kernels, channels);
    own = offer(copies->staging().owned(), device.kind());
  }
  const auto offers = job.all_gather_value(own, "the swap of staging memory");
  if (copies) map_all(job, device, offers, *copies);
  if (job.is_reporter()) {
    log::detail(
        fmt::format("weights of other {} are written into the receivers' memory, by {} "
                    "channels",
                    device.kind() == BackendKind::kHost ? "ranks" : "GPUs", channels));
  }
  return copies;
}

}  // namespace awex
