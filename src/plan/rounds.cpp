#include "plan/rounds.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "base/checked.hpp"

namespace awex {
namespace {

/// Copies are split into parts of this fraction of a message, so that messages are filled well.
constexpr uint64_t kPartsOfMessage = 8;

/// The messages of one ordered pair of ranks, one a turn, of `most` bytes at most, at `offset` of
/// their buffers.
std::vector<PackedMessage> pack(uint32_t peer, const std::vector<MergedCopy>& copies,
                                uint64_t offset, uint64_t most) {
  const uint64_t part_bytes =
      std::max(most / kPartsOfMessage / kPackAlignment * kPackAlignment, kPackAlignment);
  std::vector<PackedMessage> messages;
  for (const auto& copy : copies) {
    for (const auto& part : split(copy, part_bytes)) {
      const uint64_t bytes = round_up(part.bytes(), kPackAlignment);
      if (messages.empty() || messages.back().bytes + bytes > most) {
        messages.push_back({peer, offset, {}, 0});
      }
      auto& message = messages.back();
      message.parts.push_back({part, message.bytes});
      message.bytes += bytes;
    }
  }
  return messages;
}

/// Number of a round on all ranks: which kMostPeersAtOnce distances, then which message of a pair.
using Step = std::pair<uint32_t, uint32_t>;

/// One rank's rounds in the making.
class Schedule {
 public:
  Schedule(uint32_t ranks, uint64_t buffer_bytes)
      : ranks_(ranks),
        at_once_(std::clamp(ranks - 1, 1U, kMostPeersAtOnce)),
        most_(buffer_bytes / at_once_ / kPackAlignment * kPackAlignment) {}

  /// Adds what goes from rank `sender` to rank `receiver`, one of which is `peer`.
  void add(uint32_t sender, uint32_t receiver, uint32_t peer, const std::vector<MergedCopy>& copies,
           std::vector<PackedMessage> Round::*side) {
    const uint32_t step = (receiver + ranks_ - sender) % ranks_ - 1;
    uint32_t turn = 0;
    for (auto& message : pack(peer, copies, step % at_once_ * most_, most_)) {
      auto& round = rounds_[{step / at_once_, turn}];
      round.turn = turn++;
      (round.*side).push_back(std::move(message));
    }
  }

  [[nodiscard]] std::vector<Round> finish() {
    std::vector<Round> rounds;
    for (auto& [step, round] : rounds_) rounds.push_back(std::move(round));
    return rounds;
  }

 private:
  uint32_t ranks_;
  uint32_t at_once_;
  uint64_t most_;
  std::map<Step, Round> rounds_;
};

}  // namespace

std::vector<Round> make_rounds(const ExchangedCopies& copies, uint64_t buffer_bytes) {
  Schedule schedule(copies.ranks, buffer_bytes);
  for (const auto& [peer, sent] : copies.sends) {
    schedule.add(copies.me, peer, peer, sent, &Round::sends);
  }
  for (const auto& [peer, received] : copies.receives) {
    schedule.add(peer, copies.me, peer, received, &Round::receives);
  }
  return schedule.finish();
}

}  // namespace awex
