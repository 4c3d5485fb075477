#include "transfer/weight_transfer.hpp"

#include <algorithm>
#include <functional>

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

/// From the first to the last byte of a view, which is not empty, counted from `region`.
Extent extent_of(const DigestView& view, const std::byte* region) {
  const auto begin = static_cast<uint64_t>(view.data - region);
  const uint64_t elements = (view.rows - 1) * view.row_stride + view.cols;
  return {begin, begin + elements * view.element_size};
}

/// Whether `one` overlaps any of `extents`, which are in order and do not overlap each other.
bool touches(const std::vector<Extent>& extents, const Extent& one) {
  const auto next = std::partition_point(extents.begin(), extents.end(),
                                         [&](const Extent& e) { return e.end <= one.begin; });
  return next != extents.end() && next->begin < one.end;
}

std::vector<Message> messages_of(const std::vector<PackedMessage>& packed) {
  std::vector<Message> messages;
  for (const auto& one : packed) messages.push_back({one.peer, one.offset, one.bytes});
  return messages;
}

MessageRound messages_of(const Round& round) {
  return {round.turn, messages_of(round.sends), messages_of(round.receives)};
}

}  // namespace

WeightTransfer::WeightTransfer(const Catalogue& catalogue, const Plan& plan,
                               const Placement& placement, uint32_t me,
                               const std::byte* trainer_weights, std::byte* own_weights,
                               Kernels& kernels, Exchange& exchange)
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
  const auto rounds = make_rounds(plan, placement, me, kMessageBufferBytes);
  std::vector<MessageRound> messages;
  for (const auto& round : rounds) messages.push_back(messages_of(round));
  exchange_.prepare(std::move(messages));
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
  const auto received = received_extents();
  std::vector<DigestView> early;
  std::vector<DigestView> late;
  for (const auto& view : views) {
    const bool waits = touches(received, extent_of(view, own_weights_));
    (waits ? late : early).push_back(view);
  }
  proven_ = kernels_.prepare_proven_copies(local_copies(), early, slots);
  if (!late.empty()) late_ = kernels_.prepare_digests(late, slots);
}

/// What messages write, each copy from its first to its last byte; in order, without overlaps.
std::vector<Extent> WeightTransfer::received_extents() const {
  std::vector<Extent> all;
  for (const auto& round : rounds_) {
    for (const auto& copy : round.received) {
      const uint64_t begin = copy.target_offset;
      all.push_back({begin, begin + (copy.rows - 1) * copy.target_stride + copy.row_bytes});
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  std::vector<Extent> merged;
  for (const auto& one : all) {
    if (merged.empty() || merged.back().end < one.begin) {
      merged.push_back(one);
    } else {
      merged.back().end = std::max(merged.back().end, one.end);
    }
  }
  return merged;
}

void WeightTransfer::prepare_round(const Round& round) {
  ReadyRound ready;
  std::vector<StridedCopy> packs;
  for (const auto& message : round.sends) {
    std::byte* at = exchange_.outbox(message.peer, round.turn) + message.offset;
    for (const auto& part : message.parts) packs.push_back(pack_copy(part, trainer_weights_, at));
  }
  std::vector<StridedCopy> unpacks;
  for (const auto& message : round.receives) {
    const std::byte* at = exchange_.inbox(round.turn) + message.offset;
    for (const auto& part : message.parts) {
      unpacks.push_back(unpack_copy(part, at, own_weights_));
      ready.received.push_back(part.copy);
    }
  }
  ready.pack = kernels_.prepare_copies_on(send_lane(round.turn), packs);
  ready.unpack = kernels_.prepare_copies_on(receive_lane(round.turn), unpacks);
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

void WeightTransfer::exchange_all(void (CopyBatch::*unpack)()) {
  if (rounds_.empty()) return;
  exchange_.begin();
  for (size_t i = 0; i < rounds_.size(); ++i) {
    exchange_.open(i);
    rounds_[i].pack->copy();
    exchange_.deliver(i);
    std::invoke(unpack, *rounds_[i].unpack);
    exchange_.close(i);
  }
  kernels_.join();
}

void WeightTransfer::copy() {
  if (!rounds_.empty()) kernels_.fork();
  // Queued first, for the rounds' host may wait; but links and what serves them have priority.
  if (proven_) {
    proven_->run();
  } else {
    plain_->copy();
  }
  exchange_all(&CopyBatch::copy);
  if (late_) late_->run();
  exchange_.wait();
  if (!proven_) return;
  sums_.assign(proven_->sums().begin(), proven_->sums().end());
  if (!late_) return;
  for (size_t slot = 0; slot < sums_.size(); ++slot) sums_[slot] += late_->sums()[slot];
}

std::optional<WrongElement> WeightTransfer::compare() {
  if (!rounds_.empty()) kernels_.fork();
  plain_->compare();
  exchange_all(&CopyBatch::compare);
  exchange_.wait();
  std::optional<WrongElement> first = wrong_element(*plain_, local_);
  for (const auto& round : rounds_) {
    if (!first) first = wrong_element(*round.unpack, round.received);
  }
  return first;
}

std::optional<WrongElement> WeightTransfer::wrong_element(
    const CopyBatch& batch, const std::vector<MergedCopy>& copies) const {
  const auto difference = batch.difference();
  if (!difference) return std::nullopt;
  const MergedCopy& copy = copies[difference->copy];
  return element_at(copy.target_offset + difference->row * copy.target_stride +
                    difference->byte_in_row);
}

}  // namespace awex
