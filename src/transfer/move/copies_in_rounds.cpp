#include "transfer/move/copies_in_rounds.hpp"

#include <functional>
#include <utility>

#include "transfer/move/strided_copies.hpp"

namespace awex {
namespace {

std::vector<Message> messages_of(const std::vector<PackedMessage>& packed) {
  std::vector<Message> messages;
  for (const auto& one : packed) messages.push_back({one.peer, one.offset, one.bytes});
  return messages;
}

}  // namespace

void CopiesInRounds::prepare(const ExchangedCopies& copies, const PlacedMemory& trainer_weights,
                             const PlacedMemory& own_weights) {
  const auto rounds = make_rounds(copies, kMessageBufferBytes);
  std::vector<MessageRound> messages;
  for (const auto& round : rounds) {
    messages.push_back({round.turn, messages_of(round.sends), messages_of(round.receives)});
  }
  // The messages are the same wherever their bytes lie.
  if (rounds_.empty()) exchange_->prepare(std::move(messages));
  rounds_.clear();
  for (const auto& round : rounds) {
    rounds_.push_back(make_ready(round, trainer_weights, own_weights));
  }
}

CopiesInRounds::ReadyRound CopiesInRounds::make_ready(const Round& round,
                                                      const PlacedMemory& trainer_weights,
                                                      const PlacedMemory& own_weights) const {
  ReadyRound ready;
  std::vector<StridedCopy> packs;
  for (const auto& message : round.sends) {
    std::byte* at = exchange_->outbox(round.turn) + message.offset;
    for (const auto& part : message.parts) {
      std::byte* packed = at + part.packed_offset;
      for (const auto& cut : cut_at_source(part.copy, trainer_weights)) {
        packs.push_back(packing_copy(cut, trainer_weights, packed));
        packed += cut.bytes();
      }
    }
  }
  std::vector<StridedCopy> unpacks;
  for (const auto& message : round.receives) {
    const std::byte* at = exchange_->inbox(round.turn) + message.offset;
    for (const auto& part : message.parts) {
      const std::byte* packed = at + part.packed_offset;
      for (const auto& cut : cut_at_target(part.copy, own_weights)) {
        unpacks.push_back(unpacking_copy(cut, packed, own_weights));
        ready.received.push_back(cut);
        packed += cut.bytes();
      }
    }
  }
  ready.pack = kernels_.prepare_copies_on(Stream::kSend, packs);
  ready.unpack = kernels_.prepare_copies_on(Stream::kReceive, unpacks);
  return ready;
}

void CopiesInRounds::go_through(void (CopyBatch::*unpack)()) {
  for (size_t i = 0; i < rounds_.size(); ++i) {
    exchange_->open(i);
    rounds_[i].pack->copy();
    exchange_->deliver(i);
    std::invoke(unpack, *rounds_[i].unpack);
    exchange_->close(i);
  }
}

std::optional<uint64_t> CopiesInRounds::difference() const {
  for (const auto& round : rounds_) {
    const auto found = round.unpack->difference();
    if (found) return round.received[found->copy].target_byte(found->row, found->byte_in_row);
  }
  return std::nullopt;
}

}  // namespace awex
