#include "transfer/move/weight_transfer.hpp"

#include <algorithm>

#include "base/checked.hpp"
#include "transfer/move/strided_copies.hpp"

namespace awex {
namespace {

uint64_t number_of(const std::byte* address) { return reinterpret_cast<uintptr_t>(address); }

/// From the first to the last byte of a view, which is not empty.
Extent extent_of(const DigestView& view) {
  const uint64_t begin = number_of(view.data);
  const uint64_t elements = (view.rows - 1) * view.row_stride + view.cols;
  return {begin, begin + elements * view.element_size};
}

/// Whether `one` overlaps any of `extents`, which are in order and do not overlap each other.
bool touches(const std::vector<Extent>& extents, const Extent& one) {
  const auto next = std::partition_point(extents.begin(), extents.end(),
                                         [&](const Extent& e) { return e.end <= one.begin; });
  return next != extents.end() && next->begin < one.end;
}

/// Rows that are so near are seen as one extent with what lies between them: there may be millions.
constexpr uint64_t kExtentBytes = 1ULL << 20;

/// Of a copy that lies in one segment of `own`.
void add_extents(const MergedCopy& copy, const PlacedMemory& own, std::vector<Extent>& extents) {
  const uint64_t rows_at_once =
      std::max<uint64_t>(1, kExtentBytes / std::max<uint64_t>(copy.target_stride, copy.row_bytes));
  for (uint64_t row = 0; row < copy.rows; row += rows_at_once) {
    const uint64_t rows = std::min(row + rows_at_once, copy.rows) - row;
    const uint64_t bytes = (rows - 1) * copy.target_stride + copy.row_bytes;
    const uint64_t begin = number_of(own.at(copy.target_byte(row, 0), bytes));
    extents.push_back({begin, begin + bytes});
  }
}

/// Where remote copies write; in order, without overlaps.
std::vector<Extent> extents_of(const ExchangedCopies::ByPeer& received, const PlacedMemory& own) {
  std::vector<Extent> all;
  for (const auto& [peer, copies] : received) {
    for (const auto& copy : copies) {
      for (const auto& part : cut_at_target(copy, own)) add_extents(part, own, all);
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

}  // namespace

WeightTransfer::WeightTransfer(const Catalogue& catalogue, const Plan& plan,
                               const Placement& placement, uint32_t me, Kernels& kernels,
                               RemoteCopies& remote)
    : catalogue_(catalogue), kernels_(kernels), remote_(remote) {
  for (const auto& piece : plan.pieces) {
    if (piece.target == me) pieces_.push_back(piece);
  }
  merge_local(placement, me);
  exchanged_ = exchanged_copies(plan, placement, me);
}

void WeightTransfer::merge_local(const Placement& placement, uint32_t me) {
  std::vector<Piece> local;
  for (const auto& piece : pieces_) {
    bytes_ += piece.bytes();
    const bool is_local = placement.trainer_device[piece.source] == placement.inference_device[me];
    if (is_local) local.push_back(piece);
  }
  merged_ = merge_pieces(local);
}

void WeightTransfer::prepare(const PlacedMemory& trainer_weights, const PlacedMemory& own_weights) {
  proven_.reset();
  late_.reset();
  local_.clear();
  straight_.clear();
  for (const auto& copy : merged_) {
    for (const auto& part : cut_at_both(copy, trainer_weights, own_weights)) {
      local_.push_back(part);
      straight_.push_back(straight_copy(part, trainer_weights, own_weights));
    }
  }
  plain_ = kernels_.prepare_copies(straight_);
  received_ = extents_of(exchanged_.receives, own_weights);
  remote_.prepare(exchanged_, trainer_weights, own_weights);
}

void WeightTransfer::prove(std::span<const DigestView> views, uint32_t slots) {
  std::vector<DigestView> early;
  std::vector<DigestView> late;
  for (const auto& view : views) {
    const bool waits = touches(received_, extent_of(view));
    (waits ? late : early).push_back(view);
  }
  proven_ = kernels_.prepare_proven_copies(straight_, early, slots);
  if (!late.empty()) late_ = kernels_.prepare_digests(late, slots);
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

void WeightTransfer::copy() {
  kernels_.fork();
  // Queued first, for remote copies may wait; but links and what serves them have priority.
  if (proven_) {
    proven_->run();
  } else {
    plain_->copy();
  }
  remote_.copy();
  kernels_.join();
  if (late_) late_->run();
  remote_.wait();
  if (!proven_) return;
  sums_.assign(proven_->sums().begin(), proven_->sums().end());
  if (!late_) return;
  for (size_t slot = 0; slot < sums_.size(); ++slot) sums_[slot] += late_->sums()[slot];
}

std::optional<WrongElement> WeightTransfer::compare() {
  kernels_.fork();
  plain_->compare();
  remote_.compare();
  kernels_.join();
  remote_.wait();
  const auto wrong = wrong_byte();
  if (!wrong) return std::nullopt;
  return element_at(*wrong);
}

std::optional<uint64_t> WeightTransfer::wrong_byte() const {
  const auto found = plain_->difference();
  if (!found) return remote_.difference();
  return local_[found->copy].target_byte(found->row, found->byte_in_row);
}

}  // namespace awex
