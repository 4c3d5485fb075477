#include "transfer/peer_copies.hpp"

#include <cuda_runtime_api.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "memory/cuda_ranges.hpp"
#include "transfer/channels.hpp"
#include "transfer/cuda_channels.hpp"
#include "transfer/cuda_describe.hpp"
#include "transfer/cuda_launch.hpp"
#include "transfer/fd_exchange.hpp"
#include "transfer/offered_range.hpp"
#include "transfer/packed_streams.hpp"
#include "transfer/strided_copies.hpp"

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

/// Where a copy's bytes lie in its stream, as an address: what is known of its alignment.
std::byte* streamed(const StreamedCopy& copy) {
  return reinterpret_cast<std::byte*>(copy.begin);  // NOLINT(performance-no-int-to-ptr)
}

cuda::PackedPiece place(const StreamedCopy& copy, std::byte* data) {
  cuda::PackedPiece piece;
  piece.data = data;
  piece.begin = copy.begin;
  piece.end = copy.end();
  return piece;
}

void set_units(cuda::PackedPiece& piece, const cuda::UnitGrid& grid) {
  piece.row_units = narrow<uint32_t>(grid.row_units);
  piece.unit_bytes = narrow<uint32_t>((piece.end - piece.begin) / grid.units);
}

/// Elements that change their dtype: several at once where no row cuts them, else one by one.
cuda::PackedPiece converting_piece(const StreamedCopy& streamed_copy, const StridedCopy& copy,
                                   std::byte* data) {
  const auto described = cuda::describe_converting_copies({&copy, 1}).front();
  auto piece = place(streamed_copy, data);
  piece.converts = true;
  piece.whole_units = described.from.whole_units;
  piece.conversion = described.from.conversion;
  piece.stride = described.from.row_stride;
  auto grid = described.grid;
  if (!described.from.whole_units) {
    grid.row_units = described.from.cols;
    grid.units = copy.bytes() / element_bytes(copy.conversion->to);
  }
  set_units(piece, grid);
  return piece;
}

/// What is sent of a trainer's region.
cuda::PackedPiece piece_to_send(const StreamedCopy& streamed_copy, const std::byte* trainer) {
  const auto strided = packing_copy(streamed_copy.copy, trainer, streamed(streamed_copy));
  auto* data = const_cast<std::byte*>(strided.from);  // NOLINT(*-const-cast): it is only read
  if (strided.conversion) return converting_piece(streamed_copy, strided, data);
  const auto described = cuda::describe_copies({&strided, 1}).front();
  auto piece = place(streamed_copy, data);
  piece.stride = described.from_stride;
  set_units(piece, described.grid);
  return piece;
}

/// What is received into a rank's own region.
cuda::PackedPiece piece_to_receive(const StreamedCopy& streamed_copy, std::byte* own) {
  const auto strided = unpacking_copy(streamed_copy.copy, streamed(streamed_copy), own);
  const auto described = cuda::describe_copies({&strided, 1}).front();
  auto piece = place(streamed_copy, strided.to);
  piece.stride = described.to_stride;
  set_units(piece, described.grid);
  return piece;
}

/// The streams of one direction, ready on the device.
class ReadyStreams {
 public:
  /// `describe(copy)` gives a copy's piece, `counts(peer)` the stream's arrived and granted counts,
  /// `slots(peer)` the receiver's staging memory.
  template <class Describe, class CountsOf, class SlotsOf>
  ReadyStreams(const std::vector<PackedStream>& streams, const Describe& describe,
               const CountsOf& counts, const SlotsOf& slots, cudaStream_t stream)
      : ReadyStreams(gather(streams, describe), streams, counts, slots, stream) {}

  [[nodiscard]] const cuda::ChannelStream* data() const { return streams_.data(); }
  /// Of the copies of all streams: the places of their first bytes among all bytes.
  [[nodiscard]] const std::vector<uint64_t>& first_bytes() const { return first_bytes_; }

 private:
  /// Of all streams, one after the other.
  struct Gathered {
    std::vector<cuda::PackedPiece> pieces;
    std::vector<uint32_t> first_pieces;
    std::vector<uint64_t> first_bytes;
  };

  template <class Describe>
  static Gathered gather(const std::vector<PackedStream>& streams, const Describe& describe) {
    Gathered all;
    uint64_t first_byte = 0;
    for (const auto& stream : streams) {
      for (const auto& copy : stream.copies) {
        all.pieces.push_back(describe(copy));
        all.pieces.back().first_byte = first_byte;
        all.first_bytes.push_back(first_byte);
        first_byte += copy.copy.bytes();
      }
      const auto first = first_copies(stream);
      all.first_pieces.insert(all.first_pieces.end(), first.begin(), first.end());
    }
    return all;
  }

  template <class CountsOf, class SlotsOf>
  ReadyStreams(const Gathered& all, const std::vector<PackedStream>& streams,
               const CountsOf& counts, const SlotsOf& slots, cudaStream_t stream)
      : first_bytes_(all.first_bytes),
        pieces_(std::span(all.pieces), stream),
        first_pieces_(std::span(all.first_pieces), stream),
        streams_(streams.size()) {
    std::vector<cuda::ChannelStream> ready;
    const auto* pieces = pieces_.data();
    const auto* first_pieces = first_pieces_.data();
    for (const auto& one : streams) {
      const auto [arrived, granted] = counts(one.peer);
      ready.push_back({pieces, first_pieces, narrow<uint32_t>(one.copies.size()), one.peer,
                       one.bytes(), slots(one.peer), arrived, granted});
      pieces += one.copies.size();
      first_pieces += packets_of(one.bytes());
    }
    AWEX_CHECK(cudaMemcpyAsync(streams_.data(), ready.data(), streams_.bytes(),
                               cudaMemcpyHostToDevice, stream),
               "copy the descriptors of {} streams to the device", ready.size());
  }

  std::vector<uint64_t> first_bytes_;
  DeviceArray<cuda::PackedPiece> pieces_;
  DeviceArray<uint32_t> first_pieces_;
  DeviceArray<cuda::ChannelStream> streams_;
};

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
    sends_.emplace(
        streams_to_send(copies),
        [&](const StreamedCopy& copy) { return piece_to_send(copy, trainer_weights); },
        [this](uint32_t peer) {
          return std::pair(counts_at(peer, me_).arrived.data(), own_counts(peer).granted.data());
        },
        [this](uint32_t peer) { return peers_.at(peer)->data(); }, main_);
    const auto received = streams_to_receive(copies);
    receives_.emplace(
        received, [&](const StreamedCopy& copy) { return piece_to_receive(copy, own_weights); },
        [this](uint32_t peer) {
          return std::pair(own_counts(peer).arrived.data(), counts_at(peer, me_).granted.data());
        },
        [this](uint32_t) { return staging_->data(); }, main_);
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
    const auto& first_bytes = receives_->first_bytes();
    const auto after = std::upper_bound(first_bytes.begin(), first_bytes.end(), position);
    const auto index = static_cast<size_t>(after - first_bytes.begin()) - 1;
    const auto& copy = received_.at(index);
    const uint64_t byte = position - first_bytes[index];
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
  std::optional<ReadyStreams> sends_;
  std::optional<ReadyStreams> receives_;
  std::vector<MergedCopy> received_;  ///< Copy by copy of all streams.
  uint32_t base_ = 0;
  PinnedArray<uint32_t> waits_{cuda::kChannelWaits, 0};
  DeviceArray<uint64_t> differs_{1};
  PinnedArray<uint64_t> found_{1, cuda::kNoDifference};
};

/// Where a process's pid means something, and so its descriptors can be fetched.
struct PidSpace {
  uint64_t device = 0;
  uint64_t inode = 0;

  [[nodiscard]] bool operator==(const PidSpace&) const = default;
};

PidSpace pid_space() {
  struct stat status {};
  if (::stat("/proc/self/ns/pid", &status) != 0) {
    throw errno_error("learn the namespace of this process's id", "stat", errno);
  }
  return {status.st_dev, status.st_ino};
}

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

/// Channels that this rank's device runs at once for each of its inference ranks: where they do not
/// take turns, all of them must find room.
uint32_t channels_on(const Job& job, const Device& device) {
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  uint32_t channels = 0;
  AWEX_CHECK(cuda::count_channels(&channels), "learn how many channels gpu {} runs at once",
             device.identity().index);
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  const auto sharing = std::count_if(job.peers().begin(), job.peers().end(), [&](const Peer& peer) {
    return peer.role == Role::kInference && peer.host == me.host &&
           peer.device.uuid == me.device.uuid;
  });
  return channels / static_cast<uint32_t>(sharing);
}

/// As many as every inference rank's device runs at once.
uint32_t agree_on_channels(Job& job, const Device& device) {
  const bool takes_part = job.peers().at(static_cast<size_t>(job.rank())).role != Role::kTrainer;
  const uint32_t own = takes_part ? channels_on(job, device) : kMostChannels;
  const auto all = job.all_gather_value(own, "how many channels GPUs run at once");
  return *std::min_element(all.begin(), all.end());
}

/// The first rank whose memory this inference rank cannot write, itself if its GPU is too small.
std::optional<int> find_obstacle(Job& job, Device& device, const std::vector<PidSpace>& spaces) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  if (me.role == Role::kTrainer) return std::nullopt;
  if (channels_on(job, device) < kStreamsAtOnce) return me.rank;
  for (const auto& peer : job.peers()) {
    if (peer.role == Role::kTrainer || peer.rank == me.rank) continue;
    const bool reached =
        peer.host == me.host &&
        spaces[static_cast<size_t>(peer.rank)] == spaces[static_cast<size_t>(me.rank)] &&
        reaches_device(device.identity().index, peer.device);
    if (!reached) return peer.rank;
  }
  return std::nullopt;
}

std::string describe_obstacle(const Peer& one, const Peer& other) {
  if (one.rank == other.rank) {
    return one.describe() + " has too few multiprocessors to serve enough peers at once";
  }
  return fmt::format("{} cannot map memory of {}: {}", one.describe(), other.describe(),
                     one.host == other.host
                         ? "the one does not see the other's GPU or process, or no link joins them"
                         : "they are on different hosts");
}

}  // namespace

std::optional<std::string> find_unreachable_peer(Job& job, Device& device) {
  const auto spaces = job.all_gather_value(pid_space(), "the pid namespaces of all ranks");
  const int32_t obstacle = find_obstacle(job, device, spaces).value_or(-1);
  const auto all = job.all_gather_value(obstacle, "which GPUs reach each other");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] < 0) continue;
    return describe_obstacle(job.peers().at(rank), job.peers().at(static_cast<size_t>(all[rank])));
  }
  return std::nullopt;
}

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
