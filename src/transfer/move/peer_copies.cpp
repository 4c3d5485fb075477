#include "transfer/move/peer_copies.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <set>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "memory/cuda_ranges.hpp"
#include "plan/channels.hpp"
#include "plan/packed_streams.hpp"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/move/cuda_channels.hpp"
#include "transfer/move/cuda_streams.hpp"
#include "transfer/move/peer_reach.hpp"
#include "transfer/share/fd_exchange.hpp"
#include "transfer/share/offered_range.hpp"

namespace awex {
namespace {

using Counts = std::array<cuda::ChannelCount, kMostChannels>;

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
        channels_(channels),
        ranks_(ranks_of(job.peers(), Role::kInference)),
        me_(job.peers().at(static_cast<size_t>(job.rank())).role_rank),
        main_(static_cast<cudaStream_t>(kernels.stream(Lane::kMain))),
        lane_(static_cast<cudaStream_t>(kernels.stream(Lane::kSend))),
        staging_(device.reserve("staging memory", kPeerStagingBytes)),
        peers_(ranks_.size()) {
    if (ranks_.size() > kMostRanks) {
      throw runtime_error(fmt::format("cannot exchange with {} inference ranks: there is room for "
                                      "the counts of {}",
                                      ranks_.size(), kMostRanks),
                          "--exchange nccl has no such limit");
    }
    staging_->take_chunks(0, staging_->chunks());
    AWEX_CHECK(cudaMemset(staging_->data() + kSlotsBytes, 0, kCountsBytes),
               "clear the counts of peer copies");
    AWEX_CHECK(cudaDeviceSynchronize(), "wait until the counts of peer copies are clear");
  }

  [[nodiscard]] DeviceRange& staging() const { return *staging_; }

  void map(uint32_t peer, const CudaMemorySource& source, const OfferedRange& offered,
           std::vector<UniqueFd> fds) {
    auto& mapped = peers_.at(peer);
    mapped = make_cuda_import(source, fmt::format("staging memory of inference rank {}", peer),
                              offered.bytes, offered.chunk_bytes, MappedAccess::kReadWrite);
    mapped->map(std::move(fds));
  }

  void prepare(const ExchangedCopies& copies, const std::byte* trainer_weights,
               std::byte* own_weights) override {
    const auto sent = streams_to_send(copies);
    sends_.emplace(sent, cuda::pieces_to_send(sent, trainer_weights), links_to_send(sent), main_);
    const auto received = streams_to_receive(copies);
    const auto pieces = cuda::pieces_to_receive(received, own_weights);
    receives_.emplace(received, pieces, links_to_receive(received), main_);
    for (const auto& piece : pieces) first_bytes_.push_back(piece.first_byte);
    for (const auto& stream : received) {
      for (const auto& copy : stream.copies) received_.push_back(copy.copy);
    }
  }

  void connect() override {}  // every peer's memory is mapped, and the kernels are loaded

  void copy() override {
    AWEX_CHECK(cuda::launch_channel_copy(next_pass(), lane_),
               "launch the exchange with {} inference ranks", ranks_.size() - 1);
  }

  void compare() override {
    AWEX_CHECK(cudaMemsetAsync(differs_.data(), 0xff, differs_.bytes(), lane_),
               "reset the result of a comparison");
    AWEX_CHECK(cuda::launch_channel_compare(next_pass(), lane_),
               "launch the comparison with {} inference ranks", ranks_.size() - 1);
    AWEX_CHECK(cudaMemcpyAsync(found_.values().data(), differs_.data(), differs_.bytes(),
                               cudaMemcpyDeviceToHost, lane_),
               "fetch the result of a comparison");
  }

  void wait() override {
    const auto is_idle = [this] {
      return is_done(cudaStreamQuery(main_), "cudaStreamQuery", "the transfer of weights");
    };
    job_.wait_for(is_idle, [this] {
      return Late{late_ranks(), "finished the exchange of weights"};
    });
  }

  [[nodiscard]] std::optional<uint64_t> difference() const override {
    const uint64_t position = found_.values().front();
    if (position == cuda::kNoDifference) return std::nullopt;
    const auto after = std::upper_bound(first_bytes_.begin(), first_bytes_.end(), position);
    const auto index = static_cast<size_t>(after - first_bytes_.begin()) - 1;
    const auto& copy = received_.at(index);
    const uint64_t byte = position - first_bytes_[index];
    return copy.target_byte(byte / copy.row_bytes, byte % copy.row_bytes);
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

  [[nodiscard]] std::vector<cuda::StreamLink> links_to_send(
      const std::vector<PackedStream>& streams) const {
    std::vector<cuda::StreamLink> links;
    for (const auto& [peer, copies] : streams) {
      links.push_back({peers_.at(peer)->data(), counts_at(peer, me_).arrived.data(),
                       own_counts(peer).granted.data()});
    }
    return links;
  }
  [[nodiscard]] std::vector<cuda::StreamLink> links_to_receive(
      const std::vector<PackedStream>& streams) const {
    std::vector<cuda::StreamLink> links;
    for (const auto& [peer, copies] : streams) {
      links.push_back(
          {staging_->data(), own_counts(peer).arrived.data(), counts_at(peer, me_).granted.data()});
    }
    return links;
  }

  [[nodiscard]] cuda::ChannelPass next_pass() {
    base_ += cuda::kCountsOfPass;
    return {sends_->data(),
            receives_->data(),
            narrow<uint32_t>(ranks_.size() - 1),
            channels_,
            base_,
            waits_.values().data(),
            differs_.data()};
  }

  /// Those for whom the device has waited for long; this rank itself if for none.
  [[nodiscard]] std::vector<int> late_ranks() const {
    std::set<int> ranks;
    for (uint32_t& wait : waits_.values()) {
      const uint32_t peer = std::atomic_ref(wait).load();
      if (peer > 0) ranks.insert(ranks_.at(peer - 1));
    }
    if (ranks.empty()) return {job_.rank()};
    return {ranks.begin(), ranks.end()};
  }

  Job& job_;
  uint32_t channels_;       ///< Of each direction.
  std::vector<int> ranks_;  ///< World ranks of all inference ranks, by role rank.
  uint32_t me_;             ///< Role rank.
  cudaStream_t main_;
  cudaStream_t lane_;
  std::unique_ptr<DeviceRange> staging_;
  std::vector<std::unique_ptr<ImportedRange>> peers_;  ///< Their staging memory, by role rank.
  std::optional<cuda::DeviceStreams> sends_;
  std::optional<cuda::DeviceStreams> receives_;
  std::vector<MergedCopy> received_;   ///< Copy by copy of all streams.
  std::vector<uint64_t> first_bytes_;  ///< Their places among all that is received.
  uint32_t base_ = 0;
  PinnedArray<uint32_t> waits_{cuda::kChannelWaits, 0};
  DeviceArray<uint64_t> differs_{1};
  PinnedArray<uint64_t> found_{1, cuda::kNoDifference};
};

/// All pairs of ranks in one order, so that none waits for another in a circle.
void map_all(Job& job, Device& device, const std::vector<OfferedRange>& offers,
             PeerCopies& copies) {
  const auto source = inspect_cuda_memory(device.identity().index, device.identity().name);
  const auto ranks = ranks_of(job.peers(), Role::kInference);
  for (uint32_t giver = 0; giver < ranks.size(); ++giver) {
    const auto& offered = offers.at(static_cast<size_t>(ranks[giver]));
    const auto what = fmt::format("the staging memory of {}", job.describe(ranks[giver]));
    for (const int taker : ranks) {
      if (taker == ranks[giver]) continue;
      if (job.rank() == ranks[giver]) hand_out_fds(job, taker, offered.numbers(), what);
      if (job.rank() != taker) continue;
      copies.map(giver, source, offered, take_fds(job, ranks[giver], offered.numbers(), what));
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
    own = offer(copies->staging());
  }
  const auto offers = job.all_gather_value(own, "the swap of staging memory");
  if (copies) map_all(job, device, offers, *copies);
  if (job.is_reporter()) {
    log::detail(
        fmt::format("weights of other GPUs are written into the receivers' memory, by {} "
                    "channels",
                    channels));
  }
  return copies;
}

}  // namespace awex
