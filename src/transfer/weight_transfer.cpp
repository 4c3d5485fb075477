#include "transfer/weight_transfer.hpp"

#include <algorithm>
#include <set>

#include "base/checked.hpp"
#include "transfer/scale_grid.hpp"

namespace awex {
namespace {

/// How a copy's elements change; `trainer` is the base of its source's region.
std::optional<Conversion> conversion_of(const MergedCopy& copy, const std::byte* trainer) {
  if (copy.from == copy.to) return std::nullopt;
  Conversion conversion{copy.from, copy.to, {}};
  if (copy.scales) conversion.grid = scale_grid(*copy.scales, trainer);
  return conversion;
}

StridedCopy local_copy(const MergedCopy& copy, const std::byte* from, std::byte* to) {
  return {.from = from + copy.source_offset,
          .to = to + copy.target_offset,
          .rows = copy.rows,
          .row_bytes = copy.row_bytes,
          .from_stride = copy.source_stride,
          .to_stride = copy.target_stride,
          .conversion = conversion_of(copy, from)};
}

StridedCopy pack_copy(const PackedPart& part, const std::byte* trainer, std::byte* message) {
  return {.from = trainer + part.copy.source_offset,
          .to = message + part.packed_offset,
          .rows = part.copy.rows,
          .row_bytes = part.copy.row_bytes,
          .from_stride = part.copy.source_stride,
          .to_stride = part.copy.row_bytes,
          .conversion = conversion_of(part.copy, trainer)};
}

StridedCopy unpack_copy(const PackedPart& part, const std::byte* message, std::byte* own) {
  return {.from = message + part.packed_offset,
          .to = own + part.copy.target_offset,
          .rows = part.copy.rows,
          .row_bytes = part.copy.row_bytes,
          .from_stride = part.copy.row_bytes,
          .to_stride = part.copy.target_stride};
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
  for (const auto& piece : plan.pieces) {
    if (piece.target == me) pieces_.push_back(piece);
  }
  merge_local(placement, me);
  plain_ = kernels_.prepare_copies(local_copies());
  const auto rounds = make_rounds(plan, placement, me, kStagingBytes);
  if (rounds.empty()) return;
  staging_ = device.reserve("staging", 2 * kStagingBytes);
  staging_->take_chunks(0, staging_->chunks());
  for (const auto& round : rounds) prepare_round(round);
}

void WeightTransfer::merge_local(const Placement& placement, uint32_t me) {
  std::vector<Piece> local;
  for (const auto& piece : pieces_) {
    bytes_ += piece.bytes();
    const bool is_local = placement.trainer_device[piece.source] == placement.inference_device[me];
    if (is_local) local.push_back(piece);
  }
  local_ = merge_pieces(local);
}

std::vector<StridedCopy> WeightTransfer::local_copies() const {
  std::vector<StridedCopy> copies;
  for (const auto& copy : local_) {
    copies.push_back(local_copy(copy, trainer_weights_, own_weights_));
  }
  return copies;
}

void WeightTransfer::prove(std::span<const DigestView> views, uint32_t slots) {
  proven_ = kernels_.prepare_proven_copies(local_copies(), views, slots);
}

std::span<const uint64_t> WeightTransfer::sums() const {
  return proven_ ? proven_->sums() : std::span<const uint64_t>();
}

void WeightTransfer::prepare_round(const Round& round) {
  ReadyRound ready;
  std::vector<StridedCopy> packs;
  std::byte* at = staging_->data();
  for (const auto& message : round.sends) {
    for (const auto& part : message.parts) packs.push_back(pack_copy(part, trainer_weights_, at));
    ready.sends.push_back({message.peer, at, message.bytes});
    at += message.bytes;
  }
  std::vector<StridedCopy> unpacks;
  at = staging_->data() + kStagingBytes;
  for (const auto& message : round.receives) {
    for (const auto& part : message.parts) {
      unpacks.push_back(unpack_copy(part, at, own_weights_));
      ready.received.push_back(part.copy);
    }
    ready.receives.push_back({message.peer, at, message.bytes});
    at += message.bytes;
  }
  ready.pack = kernels_.prepare_copies(packs);
  ready.unpack = kernels_.prepare_copies(unpacks);
  rounds_.push_back(std::move(ready));
}

WrongElement WeightTransfer::element_at(uint64_t offset) const {
  for (const auto& piece : pieces_) {
    if (offset < piece.target_offset) continue;
    const uint64_t row = (offset - piece.target_offset) / piece.target_stride;
    const uint64_t byte = (offset - piece.target_offset) % piece.target_stride;
    if (row >= piece.box.rows.size() || byte >= piece.row_bytes) continue;
    const uint64_t cols = catalogue_.tensors()[piece.tensor].cols;
    return {piece.tensor, (piece.box.rows.begin + row) * cols + piece.box.cols.begin +
                              byte / element_bytes(piece.to)};
  }
  throw runtime_error(fmt::format("byte {} of the weights differs and no piece of the plan holds "
                                  "it",
                                  offset),
                      "this is a fault of awex-colocate: please report it");
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
  for (auto& round : rounds_) {
    exchange_round(round);
    round.unpack->copy();
  }
  if (proven_) {
    proven_->run();
  } else {
    plain_->copy();
  }
  exchange_.wait();
}

std::optional<WrongElement> WeightTransfer::compare() {
  std::optional<WrongElement> first;
  const auto note = [&](const CopyBatch& batch, const std::vector<MergedCopy>& copies) {
    const auto difference = batch.difference();
    if (!difference || first) return;
    const MergedCopy& copy = copies[difference->copy];
    first = element_at(copy.target_offset + difference->row * copy.target_stride +
                       difference->byte_in_row);
  };
  plain_->compare();
  exchange_.wait();
  note(*plain_, local_);
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
