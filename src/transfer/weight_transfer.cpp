#include "transfer/weight_transfer.hpp"

#include <algorithm>
#include <set>

#include "base/checked.hpp"

namespace awex {
namespace {

StridedCopy local_copy(const Piece& piece, const std::byte* from, std::byte* to) {
  return {.from = from + piece.source_offset,
          .to = to + piece.target_offset,
          .rows = piece.box.rows.size(),
          .row_bytes = piece.row_bytes,
          .from_stride = piece.source_stride,
          .to_stride = piece.target_stride};
}

StridedCopy pack_copy(const PackedPart& part, const std::byte* trainer, std::byte* message) {
  auto copy = local_copy(part.piece, trainer, nullptr);
  copy.to = message + part.packed_offset;
  copy.to_stride = part.piece.row_bytes;
  return copy;
}

StridedCopy unpack_copy(const PackedPart& part, const std::byte* message, std::byte* own) {
  auto copy = local_copy(part.piece, nullptr, own);
  copy.from = message + part.packed_offset;
  copy.from_stride = part.piece.row_bytes;
  return copy;
}

WrongElement locate(const Piece& piece, const Difference& difference, uint64_t canonical_cols) {
  const uint64_t element = piece.row_bytes / piece.box.cols.size();
  const uint64_t row = piece.box.rows.begin + difference.row;
  const uint64_t col = piece.box.cols.begin + difference.byte_in_row / element;
  return {piece.tensor, row * canonical_cols + col};
}

}  // namespace

WeightTransfer::WeightTransfer(const Catalogue& catalogue, const Plan& plan,
                               const Placement& placement, uint32_t me,
                               const std::byte* trainer_weights, std::byte* own_weights,
                               Device& device, Kernels& kernels, Exchange& exchange)
    : catalogue_(catalogue),
      trainer_weights_(trainer_weights),
      own_weights_(own_weights),
      kernels_(kernels),
      exchange_(exchange) {
  prepare_local(plan, placement, me);
  const uint64_t peers = std::max<uint64_t>(1, placement.inference_device.size() - 1);
  const uint64_t slot_bytes = kStagingBytes / peers / kPackAlignment * kPackAlignment;
  const auto rounds = make_rounds(plan, placement, me, slot_bytes);
  if (rounds.empty()) return;
  staging_ = device.reserve("staging", 2 * kStagingBytes);
  for (uint64_t chunk = 0; chunk < staging_->chunks(); ++chunk) staging_->take_chunk(chunk);
  for (const auto& round : rounds) prepare_round(round, slot_bytes);
}

void WeightTransfer::prepare_local(const Plan& plan, const Placement& placement, uint32_t me) {
  std::vector<StridedCopy> copies;
  for (const auto& piece : plan.pieces) {
    if (piece.target != me) continue;
    bytes_ += piece.bytes();
    if (placement.trainer_device[piece.source] != placement.inference_device[me]) continue;
    local_pieces_.push_back(piece);
    copies.push_back(local_copy(piece, trainer_weights_, own_weights_));
  }
  local_ = kernels_.prepare_copies(copies);
}

void WeightTransfer::prepare_round(const Round& round, uint64_t slot_bytes) {
  ReadyRound ready;
  std::vector<StridedCopy> packs;
  std::byte* slot = staging_->data();
  for (const auto& message : round.sends) {
    for (const auto& part : message.parts) packs.push_back(pack_copy(part, trainer_weights_, slot));
    ready.sends.push_back({message.peer, slot, message.bytes});
    slot += slot_bytes;
  }
  std::vector<StridedCopy> unpacks;
  slot = staging_->data() + kStagingBytes;
  for (const auto& message : round.receives) {
    for (const auto& part : message.parts) {
      unpacks.push_back(unpack_copy(part, slot, own_weights_));
      ready.received.push_back(part.piece);
    }
    ready.receives.push_back({message.peer, slot, message.bytes});
    slot += slot_bytes;
  }
  ready.pack = kernels_.prepare_copies(packs);
  ready.unpack = kernels_.prepare_copies(unpacks);
  rounds_.push_back(std::move(ready));
}

void WeightTransfer::exchange_round(ReadyRound& round) {
  round.pack->copy();
  exchange_.round(round.sends, round.receives);
}

void WeightTransfer::connect() {
  if (rounds_.empty()) return;
  const auto one_a_peer = [&](std::vector<Message> ReadyRound::*side, std::byte* data) {
    std::set<uint32_t> peers;
    for (const auto& round : rounds_) {
      for (const auto& message : round.*side) peers.insert(message.peer);
    }
    std::vector<Message> messages;
    for (const uint32_t peer : peers) {
      messages.push_back({peer, data, kPackAlignment});
      data += kPackAlignment;
    }
    return messages;
  };
  exchange_.round(one_a_peer(&ReadyRound::sends, staging_->data()),
                  one_a_peer(&ReadyRound::receives, staging_->data() + kStagingBytes));
  exchange_.wait();
}

void WeightTransfer::copy() {
  local_->copy();
  for (auto& round : rounds_) {
    exchange_round(round);
    round.unpack->copy();
  }
  exchange_.wait();
}

std::optional<WrongElement> WeightTransfer::compare() {
  std::optional<WrongElement> first;
  const auto note = [&](const CopyBatch& batch, const std::vector<Piece>& pieces) {
    const auto difference = batch.difference();
    if (!difference || first) return;
    const Piece& piece = pieces[difference->copy];
    first = locate(piece, *difference, catalogue_.tensors()[piece.tensor].cols);
  };
  local_->compare();
  exchange_.wait();
  note(*local_, local_pieces_);
  // Every round is exchanged, also after a difference: the other ranks take part in them.
  for (auto& round : rounds_) {
    exchange_round(round);
    round.unpack->compare();
    exchange_.wait();
    note(*round.unpack, round.received);
  }
  return first;
}

}  // namespace awex
