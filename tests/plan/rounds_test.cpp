// Rounds against a direct copy of every piece, in worlds of many sizes: every message has its
// place, both ends of a pair agree, nobody waits in a circle, and every byte arrives.
#include "plan/rounds.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "support/random_model.hpp"

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
      rounds_.push_back(
          make_rounds(exchanged_copies(world.plan, world.placement, rank), buffer_bytes));
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
  const auto rounds = make_rounds(exchanged_copies(plan, placement, 0), kBuffer);
  // Two peers at far distances, one after the other, in messages of a sixth of a buffer.
  CHECK(rounds.size() == 2 * kBytes / (kBuffer / kMostPeersAtOnce));
}

}  // namespace awex::test
