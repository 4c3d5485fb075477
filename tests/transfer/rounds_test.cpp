// Rounds against a direct copy of every piece, in worlds of many sizes: every message has its
// place, both ends of a pair agree, nobody waits in a circle, and every byte arrives; also where
// senders write into the receivers' buffers as they are granted.
#include "transfer/rounds.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "support/random_model.hpp"
#include "transfer/grants.hpp"

namespace awex::test {
namespace {

using Memory = std::vector<std::byte>;

/// Random pieces between ranks that each have a device of their own.
struct World {
  Placement placement;
  Plan plan;
  std::vector<Memory> sources;   ///< By trainer rank.
  std::vector<Memory> expected;  ///< By inference rank.
};

constexpr uint64_t kSourceBytes = 4096;

Placement one_device_each(Dice& dice, uint32_t ranks) {
  Placement placement;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    placement.trainer_device.push_back(rank);
    placement.inference_device.push_back(rank);
    placement.device_node.push_back(rank / 8);
  }
  // Role ranks need not sit on the devices in the same order.
  dice.shuffle(placement.inference_device);
  return placement;
}

Piece random_piece(Dice& dice, uint32_t ranks, uint32_t target, uint64_t target_offset) {
  constexpr uint64_t kElement = 2;
  Piece piece;
  piece.source = static_cast<uint32_t>(dice.below(ranks));
  piece.target = target;
  const uint64_t rows = dice.between(1, 9);
  const uint64_t cols = dice.between(1, 40);
  piece.box = {{0, rows}, {0, cols}};
  piece.row_bytes = cols * kElement;
  piece.source_stride = piece.row_bytes + kElement * dice.below(3);
  piece.target_stride = piece.row_bytes + kElement * dice.below(3);
  piece.source_offset =
      kElement * dice.below((kSourceBytes - rows * piece.source_stride) / kElement);
  piece.target_offset = target_offset;
  return piece;
}

void copy_directly(const Piece& piece, const Memory& from, Memory& to) {
  for (uint64_t row = 0; row < piece.box.rows.size(); ++row) {
    std::memcpy(&to[piece.target_offset + row * piece.target_stride],
                &from[piece.source_offset + row * piece.source_stride], piece.row_bytes);
  }
}

World random_world(Dice& dice, uint32_t ranks) {
  World world;
  world.placement = one_device_each(dice, ranks);
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    Memory& memory = world.sources.emplace_back(kSourceBytes);
    for (auto& byte : memory) byte = static_cast<std::byte>(dice.below(256));
  }
  for (uint32_t target = 0; target < ranks; ++target) {
    uint64_t end = 0;
    const uint64_t count = dice.between(0, 12);
    for (uint64_t i = 0; i < count; ++i) {
      const Piece piece = random_piece(dice, ranks, target, end);
      end += piece.box.rows.size() * piece.target_stride;
      world.plan.pieces.push_back(piece);
    }
    world.expected.emplace_back(end);
  }
  for (const auto& piece : world.plan.pieces) {
    copy_directly(piece, world.sources[piece.source], world.expected[piece.target]);
  }
  return world;
}

Memory pack(const PackedMessage& message, const Memory& source) {
  Memory packed(message.bytes);
  for (const auto& [copy, offset] : message.parts) {
    for (uint64_t row = 0; row < copy.rows; ++row) {
      std::memcpy(&packed.at(offset + row * copy.row_bytes),
                  &source.at(copy.source_offset + row * copy.source_stride), copy.row_bytes);
    }
  }
  return packed;
}

void unpack(const PackedMessage& message, const Memory& packed, Memory& target) {
  for (const auto& [copy, offset] : message.parts) {
    for (uint64_t row = 0; row < copy.rows; ++row) {
      std::memcpy(&target.at(copy.target_offset + row * copy.target_stride),
                  &packed.at(offset + row * copy.row_bytes), copy.row_bytes);
    }
  }
}

/// Messages of one direction lie side by side in a buffer.
void check_places(const std::vector<PackedMessage>& messages, uint64_t buffer_bytes) {
  std::map<uint64_t, uint64_t> ends;
  for (const auto& message : messages) {
    CHECK(ends.emplace(message.offset, message.offset + message.bytes).second);
  }
  uint64_t end = 0;
  for (const auto& [begin, next] : ends) {
    CHECK(begin >= end);
    end = next;
  }
  CHECK(end <= buffer_bytes);
}

void check_round(const Round& round, uint64_t buffer_bytes) {
  check_places(round.sends, buffer_bytes);
  check_places(round.receives, buffer_bytes);
  CHECK(round.sends.size() <= kMostPeersAtOnce);
  CHECK(round.receives.size() <= kMostPeersAtOnce);
  CHECK(round.sends.size() + round.receives.size() > 0);
}

void copy_local(const World& world, std::vector<Memory>& targets) {
  for (const auto& piece : world.plan.pieces) {
    if (world.placement.trainer_device[piece.source] !=
        world.placement.inference_device[piece.target]) {
      continue;
    }
    copy_directly(piece, world.sources[piece.source], targets[piece.target]);
  }
}

/// The memory of the trainer on an inference rank's device.
const Memory& source_beside(const World& world, uint32_t inference) {
  const auto& devices = world.placement.trainer_device;
  uint32_t trainer = 0;
  while (devices[trainer] != world.placement.inference_device[inference]) ++trainer;
  return world.sources[trainer];
}

/// Lets all ranks go through their rounds, each waiting in a round until its messages have met
/// their other ends. Messages of a pair meet in order.
class Cluster {
 public:
  Cluster(const World& world, uint64_t buffer_bytes) : world_(world) {
    const auto ranks = static_cast<uint32_t>(world.expected.size());
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      rounds_.push_back(make_rounds(world.plan, world.placement, rank, buffer_bytes));
      targets_.emplace_back(world.expected[rank].size());
    }
    at_.assign(ranks, 0);
    for (const auto& rounds : rounds_) {
      for (const auto& round : rounds) check_round(round, buffer_bytes);
    }
  }

  /// Whether all ranks come to their ends.
  bool run() {
    copy_local(world_, targets_);
    for (uint32_t rank = 0; rank < rounds_.size(); ++rank) begin_round(rank);
    for (bool moved = true; moved;) {
      moved = false;
      for (uint32_t rank = 0; rank < rounds_.size(); ++rank) {
        while (at_[rank] < rounds_[rank].size() && waits_for_[rank] == 0) {
          ++at_[rank];
          begin_round(rank);
          moved = true;
        }
      }
    }
    for (uint32_t rank = 0; rank < rounds_.size(); ++rank) {
      if (at_[rank] < rounds_[rank].size()) return false;
    }
    return true;
  }

  [[nodiscard]] const std::vector<Memory>& targets() const { return targets_; }

 private:
  /// A message of which one end is in its round.
  struct Waiting {
    const PackedMessage* message = nullptr;
    uint32_t turn = 0;
    bool sends = false;
  };

  void begin_round(uint32_t rank) {
    if (at_[rank] == rounds_[rank].size()) return;
    const Round& round = rounds_[rank][at_[rank]];
    waits_for_[rank] += round.sends.size() + round.receives.size();
    for (const auto& message : round.sends) meet(rank, message.peer, {&message, round.turn, true});
    for (const auto& message : round.receives)
      meet(message.peer, rank, {&message, round.turn, false});
  }

  void meet(uint32_t sender, uint32_t receiver, Waiting arrived) {
    auto& queue = waiting_[{sender, receiver}];
    if (queue.message == nullptr) {
      queue = arrived;
      return;
    }
    REQUIRE(queue.sends != arrived.sends);
    REQUIRE(queue.turn == arrived.turn);
    const auto& sent = *(arrived.sends ? arrived : queue).message;
    const auto& received = *(arrived.sends ? queue : arrived).message;
    REQUIRE(sent.bytes == received.bytes);
    REQUIRE(sent.offset == received.offset);
    unpack(received, pack(sent, source_beside(world_, sender)), targets_[receiver]);
    --waits_for_[sender];
    --waits_for_[receiver];
    queue = {};
  }

  const World& world_;
  std::vector<std::vector<Round>> rounds_;
  std::vector<size_t> at_;
  std::map<uint32_t, size_t> waits_for_;  ///< Messages of the current round.
  std::map<std::pair<uint32_t, uint32_t>, Waiting> waiting_;
  std::vector<Memory> targets_;
};

MessageRound messages_of(const Round& round) {
  MessageRound messages{round.turn, {}, {}};
  for (const auto& m : round.sends) messages.sends.push_back({m.peer, m.offset, m.bytes});
  for (const auto& m : round.receives) messages.receives.push_back({m.peer, m.offset, m.bytes});
  return messages;
}

/// Lets senders write into the receivers' buffers as they are granted. Every rank packs the rounds
/// in some queues, each of every so manyth turn, and unpacks them in as many others.
class GrantedCluster {
 public:
  /// `in_flight`: how many rounds a rank's host queues before the first of them is done.
  GrantedCluster(const World& world, uint64_t buffer_bytes, uint32_t buffers, size_t in_flight)
      : world_(world), buffers_(buffers), in_flight_(in_flight) {
    const auto ranks = static_cast<uint32_t>(world.expected.size());
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      auto& one = ranks_.emplace_back();
      one.rounds = make_rounds(world.plan, world.placement, rank, buffer_bytes);
      std::vector<MessageRound> messages;
      for (const auto& round : one.rounds) messages.push_back(messages_of(round));
      one.grants = grants_of(messages, buffers);
      targets_.emplace_back(world.expected[rank].size());
    }
  }

  /// One pass after another, as the counts go on. Whether all ranks come to the end.
  bool run() {
    base_ += kTurnsOfPass;
    for (auto& target : targets_) std::fill(target.begin(), target.end(), std::byte{0});
    copy_local(world_, targets_);
    for (auto& rank : ranks_) {
      rank.packed = {};
      rank.unpacked = {};
    }
    for (uint32_t rank = 0; rank < ranks_.size(); ++rank) grant(rank, ranks_[rank].grants.at_begin);
    for (bool moved = true; moved;) {
      moved = false;
      for (uint32_t rank = 0; rank < ranks_.size(); ++rank) {
        for (uint32_t queue = kQueues; queue-- > 0;) {
          moved = write_round(rank, queue) || moved;
          moved = read_round(rank, queue) || moved;
        }
      }
    }
    for (auto& rank : ranks_) {
      for (uint32_t queue = 0; queue < kQueues; ++queue) {
        if (next(rank, rank.unpacked, queue) != nullptr) return false;
      }
    }
    return true;
  }

  [[nodiscard]] const std::vector<Memory>& targets() const { return targets_; }

 private:
  static constexpr uint32_t kQueues = kLanesADirection;
  static constexpr uint32_t kTurnsOfPass = 1U << 20;
  using Buffer = std::pair<uint32_t, uint32_t>;  ///< Peer, and which of its buffers.
  struct Rank {
    std::vector<Round> rounds;
    Grants grants;
    std::array<size_t, kQueues> packed{};  ///< Rounds gone through, by queue.
    std::array<size_t, kQueues> unpacked{};
    std::map<Buffer, uint32_t> granted;  ///< To it, by receiver: turns before this one.
    std::map<Buffer, Memory> arrived;    ///< By sender.
    std::map<std::pair<uint32_t, uint64_t>, uint32_t> places;  ///< Sender of what lies there.
  };

  void grant(uint32_t receiver, const std::vector<Grant>& grants) {
    for (const auto& [peer, turn] : grants) {
      uint32_t& granted = ranks_[peer].granted[{receiver, turn % buffers_}];
      CHECK(granted <= base_ + turn);
      granted = base_ + turn + 1;
    }
  }

  /// Whether the host has come to a round: those too far before it are written and read.
  bool is_queued(Rank& rank, size_t round) const {
    for (uint32_t queue = 0; queue < kQueues; ++queue) {
      for (auto* at : {&rank.packed, &rank.unpacked}) {
        if (next(rank, *at, queue) != nullptr && at->at(queue) + in_flight_ <= round) return false;
      }
    }
    return true;
  }

  /// The queue's next round, null at its end.
  static const Round* next(const Rank& rank, std::array<size_t, kQueues>& at, uint32_t queue) {
    size_t& index = at.at(queue);
    while (index < rank.rounds.size() && rank.rounds[index].turn % kQueues != queue) ++index;
    return index < rank.rounds.size() ? &rank.rounds[index] : nullptr;
  }

  bool write_round(uint32_t me, uint32_t queue) {
    Rank& rank = ranks_[me];
    const Round* round = next(rank, rank.packed, queue);
    if (round == nullptr || !is_queued(rank, rank.packed.at(queue))) return false;
    const uint32_t buffer = round->turn % buffers_;
    for (const auto& message : round->sends) {
      if (rank.granted[{message.peer, buffer}] <= base_ + round->turn) return false;
    }
    for (const auto& message : round->sends) {
      Rank& receiver = ranks_[message.peer];
      // Nothing lies there that was not unpacked.
      REQUIRE(receiver.places.emplace(std::pair(buffer, message.offset), me).second);
      receiver.arrived[{me, buffer}] = pack(message, source_beside(world_, me));
    }
    ++rank.packed.at(queue);
    return true;
  }

  bool read_round(uint32_t me, uint32_t queue) {
    Rank& rank = ranks_[me];
    const Round* round = next(rank, rank.unpacked, queue);
    if (round == nullptr || !is_queued(rank, rank.unpacked.at(queue))) return false;
    const uint32_t buffer = round->turn % buffers_;
    for (const auto& message : round->receives) {
      if (rank.arrived.count({message.peer, buffer}) == 0) return false;
    }
    for (const auto& message : round->receives) {
      const auto packed = rank.arrived.extract({message.peer, buffer});
      const auto place = rank.places.extract({buffer, message.offset});
      REQUIRE(place);
      CHECK(place.mapped() == message.peer);
      REQUIRE(packed.mapped().size() == message.bytes);
      unpack(message, packed.mapped(), targets_[me]);
    }
    grant(me, rank.grants.after_round.at(rank.unpacked.at(queue)++));
    return true;
  }

  const World& world_;
  uint32_t buffers_;
  size_t in_flight_;
  uint32_t base_ = 0;  ///< What this pass's grants are counted on.
  std::vector<Rank> ranks_;
  std::vector<Memory> targets_;
};

}  // namespace

TEST_CASE("rounds bring every byte in worlds of every size, without a circle of waiting ranks") {
  Dice dice(7);
  for (uint32_t ranks = 1; ranks <= 40; ++ranks) {
    for (const uint64_t buffer_bytes : {96ULL, 480ULL, 1ULL << 20}) {
      CAPTURE(ranks);
      CAPTURE(buffer_bytes);
      const World world = random_world(dice, ranks);
      Cluster cluster(world, buffer_bytes);
      REQUIRE(cluster.run());
      CHECK(cluster.targets() == world.expected);
    }
  }
}

TEST_CASE("granted messages overwrite nothing, wait in no circle and bring every byte, twice") {
  Dice dice(11);
  for (uint32_t ranks = 1; ranks <= 24; ++ranks) {
    for (const uint64_t buffer_bytes : {96ULL, 480ULL, 1ULL << 20}) {
      for (const auto& [buffers, in_flight] :
           {std::pair{4U, 64}, std::pair{8U, 64}, std::pair{4U, 1}, std::pair{4U, 3}}) {
        CAPTURE(ranks);
        CAPTURE(buffer_bytes);
        CAPTURE(buffers);
        CAPTURE(in_flight);
        const World world = random_world(dice, ranks);
        GrantedCluster cluster(world, buffer_bytes, buffers, static_cast<size_t>(in_flight));
        for (int pass = 0; pass < 2; ++pass) {
          REQUIRE(cluster.run());
          CHECK(cluster.targets() == world.expected);
        }
      }
    }
  }
}

TEST_CASE("a large cluster sends long messages still") {
  Placement placement;
  for (uint32_t rank = 0; rank < 1024; ++rank) {
    placement.trainer_device.push_back(rank);
    placement.inference_device.push_back(rank);
    placement.device_node.push_back(rank / 8);
  }
  constexpr uint64_t kBytes = 96ULL << 20;
  Plan plan;
  for (const uint32_t source : {1U, 500U}) {
    plan.pieces.push_back({.source = source,
                           .target = 0,
                           .box = {{0, 1}, {0, kBytes / 2}},
                           .row_bytes = kBytes,
                           .source_stride = kBytes,
                           .target_offset = source * kBytes,
                           .target_stride = kBytes});
  }
  constexpr uint64_t kBuffer = 24ULL << 20;
  const auto rounds = make_rounds(plan, placement, 0, kBuffer);
  // Two peers at far distances, one after the other, in messages of a sixth of a buffer.
  CHECK(rounds.size() == 2 * kBytes / (kBuffer / kMostPeersAtOnce));
}

}  // namespace awex::test
