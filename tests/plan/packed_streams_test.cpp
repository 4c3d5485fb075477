// Streams and channels as both ends and all ranks see them: every byte has one place, both ends
// agree, nothing is overwritten and nobody waits in a circle.
#include "plan/packed_streams.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "plan/channels.hpp"
#include "support/remote_case.hpp"

using namespace awex;
using awex::test::RemoteCase;

namespace {

/// The copies of a packet lie in it as `first_copies` says, and fill it but for gaps.
void check_packets(const PackedStream& stream) {
  const auto first = first_copies(stream);
  REQUIRE(first.size() == packets_of(stream.bytes()));
  for (uint64_t packet = 0; packet < first.size(); ++packet) {
    const uint64_t begin = packet * kPacketBytes;
    const auto& copy = stream.copies.at(first[packet]);
    CHECK(copy.end() > begin);
    CHECK(copy.begin < begin + kPacketBytes);
    if (first[packet] > 0) CHECK(stream.copies.at(first[packet] - 1).end() <= begin);
  }
}

void check_stream(const PackedStream& stream, const std::vector<MergedCopy>& wanted) {
  uint64_t bytes = 0;
  uint64_t end = 0;
  for (const auto& packed : stream.copies) {
    CHECK(packed.begin % kPackedStreamAlignment == 0);
    CHECK(packed.begin >= end);
    CHECK(packed.begin < end + kPackedStreamAlignment);
    end = packed.end();
    bytes += packed.copy.bytes();
  }
  uint64_t wanted_bytes = 0;
  for (const auto& copy : wanted) wanted_bytes += copy.bytes();
  CHECK(bytes == wanted_bytes);
  check_packets(stream);
}

bool are_same(const PackedStream& a, const PackedStream& b) {
  return std::equal(a.copies.begin(), a.copies.end(), b.copies.begin(), b.copies.end(),
                    [](const PackedCopy& x, const PackedCopy& y) {
                      return x.begin == y.begin && x.copy.source_offset == y.copy.source_offset &&
                             x.copy.target_offset == y.copy.target_offset &&
                             x.copy.bytes() == y.copy.bytes();
                    });
}

/// Packets of each stream of a cluster, by sender and number.
using Packets = std::vector<std::vector<uint32_t>>;

/// Plays one channel of all ranks by the protocol of transfer/move/channel_steps.hpp, an end at a
/// time in a random order.
class Channel {
 public:
  Channel(uint32_t number, uint32_t channels, const Packets& packets)
      : number_(number), channels_(channels), packets_(packets) {
    const auto ranks = static_cast<uint32_t>(packets.size());
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      for (const bool sends : {true, false}) ends_.push_back({rank, sends, work_of(rank, sends)});
    }
  }

  /// Whether all ends come to their ends.
  bool run(std::mt19937& random) {
    std::vector<size_t> order(ends_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (bool moved = true; moved;) {
      moved = false;
      std::shuffle(order.begin(), order.end(), random);
      for (const size_t i : order) moved = step(ends_[i]) || moved;
    }
    return std::all_of(ends_.begin(), ends_.end(),
                       [](const End& end) { return end.done == end.work.size(); });
  }

 private:
  /// One packet, as one end sees it.
  struct Piece {
    uint32_t peer = 0;
    uint32_t stream = 0;
    uint32_t packet = 0;
    uint32_t count = 0;  ///< Of the stream's packets in this channel, from 1.
  };
  struct End {
    uint32_t rank = 0;
    bool sends = false;
    std::vector<Piece> work;
    size_t done = 0;
  };
  using Pair = std::pair<uint32_t, uint32_t>;  ///< Sender, receiver.

  [[nodiscard]] std::vector<Piece> work_of(uint32_t rank, bool sends) const {
    const auto ranks = static_cast<uint32_t>(packets_.size());
    std::vector<Piece> work;
    for (uint32_t group = 0; group < packed_stream_groups(ranks - 1); ++group) {
      const auto share = channel_share(group, ranks - 1, number_, channels_);
      const uint32_t distance = share.stream + 1;
      const uint32_t peer = (rank + (sends ? distance : ranks - distance)) % ranks;
      const uint32_t packets = packets_[sends ? rank : peer][share.stream];
      uint32_t count = 0;
      for (uint32_t p = share.first_packet; p < packets; p += share.packet_step) {
        work.push_back({peer, share.stream, p, ++count});
      }
    }
    return work;
  }

  bool step(End& end) {
    if (end.done == end.work.size()) return false;
    const Piece& piece = end.work[end.done];
    const Pair pair = end.sends ? Pair{end.rank, piece.peer} : Pair{piece.peer, end.rank};
    auto& granted = granted_[pair];
    if (!end.sends && granted < kChannelSlots) {
      granted = kChannelSlots;
      return true;
    }
    if ((end.sends ? granted : arrived_[pair]) < piece.count) return false;
    auto& slot = slots_[{pair.second, (piece.count - 1) % kChannelSlots}];
    if (end.sends) {
      REQUIRE(slot.empty());
      slot.push_back({end.rank, piece.stream, piece.packet, piece.count});
      arrived_[pair] = piece.count;
    } else {
      REQUIRE(slot.size() == 1);
      CHECK(slot.front().peer == piece.peer);
      CHECK(slot.front().stream == piece.stream);
      CHECK(slot.front().packet == piece.packet);
      slot.clear();
      granted = piece.count + kChannelSlots;
    }
    ++end.done;
    return true;
  }

  uint32_t number_;
  uint32_t channels_;
  const Packets& packets_;
  std::vector<End> ends_;
  std::map<Pair, uint32_t> granted_;
  std::map<Pair, uint32_t> arrived_;
  std::map<Pair, std::vector<Piece>> slots_;  ///< By receiver and slot: what lies there.
};

}  // namespace

TEST_CASE("both ends of a stream see every copy at the same place") {
  for (uint32_t ranks = 2; ranks <= 11; ++ranks) {
    CAPTURE(ranks);
    const RemoteCase one(ranks, 3 * uint64_t{kPacketBytes});
    for (uint32_t sender = 0; sender < ranks; ++sender) {
      const auto copies = one.of(sender);
      const auto sends = streams_to_send(copies);
      REQUIRE(sends.size() == ranks - 1);
      for (uint32_t number = 0; number < sends.size(); ++number) {
        const uint32_t receiver = (sender + number + 1) % ranks;
        CHECK(sends[number].peer == receiver);
        const auto receives = streams_to_receive(one.of(receiver));
        CHECK(receives[number].peer == sender);
        CHECK(are_same(sends[number], receives[number]));
        const auto found = copies.sends.find(receiver);
        check_stream(sends[number],
                     found == copies.sends.end() ? std::vector<MergedCopy>{} : found->second);
      }
    }
  }
}

TEST_CASE("copies too large for 32-bit counts of bytes are cut") {
  constexpr uint64_t kGiB = 1ULL << 30;
  constexpr uint64_t kRow = 5 * kGiB + 10;
  const MergedCopy long_rows{.rows = 2,
                             .row_bytes = kRow,
                             .source_offset = 7,
                             .source_stride = kRow + 1,
                             .target_offset = 9,
                             .target_stride = kRow + 2};
  const MergedCopy many_rows{.rows = 5,
                             .row_bytes = kGiB / 2,
                             .source_stride = kGiB,
                             .target_offset = 3,
                             .target_stride = kGiB / 2};
  const auto streams = streams_to_send({0, 2, {{1, {long_rows, many_rows}}}, {}});
  REQUIRE(streams.size() == 1);
  check_stream(streams.front(), {long_rows, many_rows});
  const auto& copies = streams.front().copies;
  REQUIRE(copies.size() == 12 + 3);
  CHECK(std::all_of(copies.begin(), copies.end(),
                    [](const PackedCopy& part) { return part.copy.bytes() <= kGiB; }));
  CHECK(copies[11].copy.row_bytes == 10);
  CHECK(copies[11].copy.source_offset == 7 + kRow + 1 + 5 * kGiB);
  CHECK(copies[11].copy.target_offset == 9 + kRow + 2 + 5 * kGiB);
  CHECK(copies[14].copy.rows == 1);
  CHECK(copies[14].copy.source_offset == 4 * kGiB);
  CHECK(copies[14].copy.target_offset == 3 + 2 * kGiB);
}

TEST_CASE("every packet of every stream is one channel's") {
  constexpr uint32_t kPackets = 1000;
  for (const uint32_t channels : {kPackedStreamsAtOnce, 39U, 54U, kMostChannels}) {
    for (const uint32_t streams : {1U, 2U, 7U, 8U, 9U, 15U, 100U}) {
      CAPTURE(channels);
      CAPTURE(streams);
      std::vector<std::vector<uint32_t>> carried(streams, std::vector<uint32_t>(kPackets));
      for (uint32_t group = 0; group < packed_stream_groups(streams); ++group) {
        for (uint32_t channel = 0; channel < channels; ++channel) {
          const auto share = channel_share(group, streams, channel, channels);
          for (uint32_t p = share.first_packet; p < kPackets; p += share.packet_step) {
            ++carried.at(share.stream)[p];
          }
        }
      }
      for (const auto& of_stream : carried) {
        CHECK(std::all_of(of_stream.begin(), of_stream.end(), [](uint32_t n) { return n == 1; }));
      }
    }
  }
}

TEST_CASE("channels overwrite nothing and wait in no circle, in clusters of every size") {
  std::mt19937 random(3);
  for (uint32_t ranks = 2; ranks <= 30; ++ranks) {
    Packets packets(ranks, std::vector<uint32_t>(ranks - 1));
    for (auto& of_rank : packets) {
      for (auto& count : of_rank) {
        count = random() % 3 == 0 ? 0 : static_cast<uint32_t>(random() % 200);
      }
    }
    for (const uint32_t channels : {kPackedStreamsAtOnce, 39U, kMostChannels}) {
      for (const uint32_t number : {0U, 1U, 7U, channels - 1}) {
        CAPTURE(ranks);
        CAPTURE(channels);
        CAPTURE(number);
        REQUIRE(Channel(number, channels, packets).run(random));
      }
    }
  }
}
