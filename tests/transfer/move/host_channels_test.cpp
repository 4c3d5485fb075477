// The host's twin of a GPU's channels, with all ranks in one process: what a stream brings,
// whatever is stopped on the way. Also run under ThreadSanitizer, which sees the very steps that
// the CUDA kernel takes.
#include "transfer/move/host_channels.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/wait.hpp"
#include "transfer/move/channel_packed_streams.hpp"

using namespace awex;

namespace {

constexpr std::byte kUnset{0xee};
constexpr uint64_t kStagingOfRank = uint64_t{kHostChannels} * kChannelSlots * kPacketBytes;

/// A few plain copies between most pairs of ranks: one of several packets, rows at distances, a
/// byte. (RemoteCase has every kind, for slower tests.)
class PlainCase {
 public:
  explicit PlainCase(uint32_t ranks) : from_bytes_(ranks), to_bytes_(ranks) {
    for (uint32_t sender = 0; sender < ranks; ++sender) {
      for (uint32_t receiver = 0; receiver < ranks; ++receiver) {
        if (sender == receiver || (sender + 3 * receiver) % 7 == 6) continue;
        add(sender, receiver, 1, 9 * uint64_t{kPacketBytes} / 2 + 48);
        add(sender, receiver, 301, 37);
        add(sender, receiver, 1, 1);
      }
    }
  }

  [[nodiscard]] uint64_t to_bytes(uint32_t rank) const { return to_bytes_[rank]; }

  [[nodiscard]] ExchangedCopies of(uint32_t me) const {
    ExchangedCopies copies{me, static_cast<uint32_t>(from_bytes_.size()), {}, {}};
    for (const auto& copy : copies_) {
      if (copy.source == me) copies.sends[copy.target].push_back(copy);
      if (copy.target == me) copies.receives[copy.source].push_back(copy);
    }
    return copies;
  }

  /// What a rank sends from in a version: all bytes are others than in the versions before.
  [[nodiscard]] std::vector<std::byte> source(uint32_t rank, uint32_t version) const {
    std::vector<std::byte> bytes(from_bytes_[rank]);
    for (uint64_t at = 0; at < bytes.size(); ++at) {
      bytes[at] = static_cast<std::byte>(at * 7 + at / 4096 + rank * 101 + version * 37);
    }
    return bytes;
  }

  /// What a rank, all of whose bytes were unset, holds then.
  [[nodiscard]] std::vector<std::byte> target(
      uint32_t rank, const std::vector<std::vector<std::byte>>& sources) const {
    std::vector<std::byte> bytes(to_bytes_[rank], kUnset);
    for (const auto& copy : copies_) {
      if (copy.target != rank) continue;
      for (uint64_t row = 0; row < copy.rows; ++row) {
        std::copy_n(&sources[copy.source][copy.source_offset + row * copy.source_stride],
                    copy.row_bytes, &bytes[copy.target_offset + row * copy.target_stride]);
      }
    }
    return bytes;
  }

 private:
  void add(uint32_t sender, uint32_t receiver, uint64_t rows, uint64_t row_bytes) {
    const uint64_t source_stride = row_bytes + 3;
    const uint64_t target_stride = row_bytes + 5;
    copies_.push_back({.source = sender,
                       .target = receiver,
                       .rows = rows,
                       .row_bytes = row_bytes,
                       .source_offset = from_bytes_[sender],
                       .source_stride = source_stride,
                       .target_offset = to_bytes_[receiver],
                       .target_stride = target_stride});
    from_bytes_[sender] += rows * source_stride;
    to_bytes_[receiver] += rows * target_stride;
  }

  std::vector<uint64_t> from_bytes_;  ///< By rank.
  std::vector<uint64_t> to_bytes_;
  std::vector<MergedCopy> copies_;
};

/// All ranks of a case: their memory, and their channels over it.
class Cluster {
 public:
  explicit Cluster(uint32_t ranks, ChannelCount counts = 0)
      : case_(ranks), ranks_(ranks), channels_(ranks - 1) {
    Counts begun{};
    begun.fill(counts);
    for (uint32_t me = 0; me < ranks; ++me) {
      auto& rank = ranks_[me];
      rank.from = case_.source(me, 0);
      rank.to.resize(case_.to_bytes(me), kUnset);
      rank.staging.resize(kStagingOfRank, kUnset);
      rank.arrived.resize(ranks, begun);
      rank.granted.resize(ranks, begun);
    }
    for (uint32_t me = 0; me < ranks; ++me) connect(me);
  }
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  Cluster(Cluster&&) = delete;
  Cluster& operator=(Cluster&&) = delete;
  /// A rank's channels write the memory of others.
  ~Cluster() {
    for (auto& rank : ranks_) rank.channels->stop();
    for (auto& rank : ranks_) rank.channels.reset();
  }

  void send(uint32_t version) {
    for (uint32_t me = 0; me < ranks_.size(); ++me) {
      // Assigned in place, for addresses are known.
      const auto bytes = case_.source(me, version);
      std::copy(bytes.begin(), bytes.end(), ranks_[me].from.begin());
      std::fill(ranks_[me].to.begin(), ranks_[me].to.end(), kUnset);
    }
  }

  [[nodiscard]] PeerChannels& channels(uint32_t rank) { return *ranks_[rank].channels; }
  [[nodiscard]] uint32_t size() const { return static_cast<uint32_t>(ranks_.size()); }

  void copy_all(ChannelCount base) {
    for (auto& rank : ranks_) rank.channels->copy(base);
    finish();
  }
  void compare_all(ChannelCount base) {
    for (auto& rank : ranks_) rank.channels->compare(base);
    finish();
  }
  void stop_all() {
    for (auto& rank : ranks_) rank.channels->stop();
    finish();
    for (auto& rank : ranks_) rank.channels->go_on();
  }

  /// Fails where a byte is not what was sent, or ought not to have been written.
  void check() const {
    std::vector<std::vector<std::byte>> sources;
    for (const auto& rank : ranks_) sources.push_back(rank.from);
    for (uint32_t me = 0; me < ranks_.size(); ++me) {
      CAPTURE(me);
      const bool is_right = ranks_[me].to == case_.target(me, sources);
      CHECK(is_right);
    }
  }

  /// Spoils a received byte of a rank; the position of it among all that the rank receives.
  uint64_t spoil(uint32_t me) {
    const auto streams = streams_to_receive(case_.of(me));
    const auto before = bytes_before_copies(streams);
    const auto& copy = streams.back().copies.at(1).copy;
    ranks_[me].to.at(copy.target_byte(copy.rows - 1, copy.row_bytes - 1)) ^= std::byte{1};
    return before.at(before.size() - streams.back().copies.size() + 1) + copy.bytes() - 1;
  }

 private:
  using Counts = std::array<ChannelCount, kMostChannels>;

  struct Rank {
    std::vector<std::byte> from;
    std::vector<std::byte> to;
    std::vector<std::byte> staging;
    std::vector<Counts> arrived;  ///< By peer.
    std::vector<Counts> granted;
    std::unique_ptr<PeerChannels> channels;
  };

  void connect(uint32_t me) {
    auto& own = ranks_[me];
    LinkedPackedStreams sends{streams_to_send(case_.of(me)), {}};
    for (const auto& stream : sends.streams) {
      auto& peer = ranks_[stream.peer];
      sends.links.push_back(
          {peer.staging.data(), peer.arrived[me].data(), own.granted[stream.peer].data()});
    }
    LinkedPackedStreams receives{streams_to_receive(case_.of(me)), {}};
    for (const auto& stream : receives.streams) {
      receives.links.push_back({own.staging.data(), own.arrived[stream.peer].data(),
                                ranks_[stream.peer].granted[me].data()});
    }
    own.channels = make_host_channels(channels_);
    own.channels->prepare(sends, {own.from.data(), own.from.size()}, receives,
                          {own.to.data(), own.to.size()});
  }

  void finish() {
    NoMonitor nobody;
    const auto are_done = [this] {
      return std::all_of(ranks_.begin(), ranks_.end(),
                         [](const Rank& rank) { return rank.channels->is_done(); });
    };
    wait_until(are_done, "the test's pass", Deadline(Seconds(60)), nobody);
  }

  PlainCase case_;
  std::vector<Rank> ranks_;
  uint32_t channels_;  ///< One a stream, so that its slots are used again and again.
};

}  // namespace

TEST_CASE("channels bring every byte of every stream, pass after pass") {
  for (const uint32_t ranks : {2U, 3U, 5U}) {
    CAPTURE(ranks);
    Cluster cluster(ranks);
    for (uint32_t pass = 1; pass <= 2; ++pass) {
      CAPTURE(pass);
      cluster.send(pass);
      cluster.copy_all(pass * kCountsOfPass);
      cluster.check();
    }
  }
}

TEST_CASE("counts may wrap around") {
  constexpr ChannelCount kBegin = 0U - 2 * kCountsOfPass;
  Cluster cluster(3, kBegin);
  for (uint32_t pass = 1; pass <= 4; ++pass) {
    CAPTURE(pass);
    cluster.send(pass);
    cluster.copy_all(kBegin + pass * kCountsOfPass);
    cluster.check();
  }
}

TEST_CASE("comparing finds the first byte that differs, on the rank that holds it") {
  Cluster cluster(3);
  cluster.send(1);
  cluster.copy_all(kCountsOfPass);
  cluster.compare_all(2 * kCountsOfPass);
  for (uint32_t rank = 0; rank < cluster.size(); ++rank) {
    CHECK_FALSE(cluster.channels(rank).difference().has_value());
  }
  const uint64_t position = cluster.spoil(1);
  cluster.compare_all(3 * kCountsOfPass);
  CHECK(cluster.channels(1).difference() == position);
  CHECK_FALSE(cluster.channels(0).difference().has_value());
  CHECK_FALSE(cluster.channels(2).difference().has_value());
}

TEST_CASE("who waits for long says for whom, until it is stopped") {
  Cluster cluster(3);
  for (const uint32_t rank : {0U, 1U}) cluster.channels(rank).copy(kCountsOfPass);
  NoMonitor nobody;
  wait_until([&] { return cluster.channels(1).late_peers() == std::vector<uint32_t>{2}; },
             "the note of who is late", Deadline(Seconds(60)), nobody);
  CHECK_FALSE(cluster.channels(1).is_done());
  cluster.stop_all();
  CHECK(cluster.channels(1).late_peers().empty());
}

TEST_CASE("whatever a pass was stopped at, one with larger counts brings every byte") {
  std::mt19937 random(5);
  for (const uint32_t ranks : {2U, 4U}) {
    CAPTURE(ranks);
    Cluster cluster(ranks);
    ChannelCount base = 0;
    for (uint32_t round = 1; round <= 5; ++round) {
      CAPTURE(round);
      cluster.send(2 * round - 1);
      base += kCountsOfPass;
      // Some do not come, or have come a pass further than others have.
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const ChannelCount ahead = random() % 2 == 0 ? kCountsOfPass : 0;
        if (random() % 4 > 0) cluster.channels(rank).copy(base + ahead);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
      cluster.stop_all();
      base += 2 * kCountsOfPass;
      cluster.send(2 * round);
      cluster.copy_all(base);
      cluster.check();
    }
  }
}

TEST_CASE("channels that are destroyed in the midst of a pass end it") {
  Cluster cluster(3);
  cluster.channels(0).copy(kCountsOfPass);
}
