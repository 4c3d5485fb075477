#include "transfer/move/scale_search.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "transfer/kernels/scale_grid.hpp"

namespace awex {
namespace {

AmaxView view_of(const ScaledShard& shard, const PlacedMemory& weights) {
  const uint64_t rows = shard.box.rows.size();
  const uint64_t cols = shard.box.cols.size();
  const uint64_t elements = (rows - 1) * shard.row_stride + cols;
  return {.data = weights.at(shard.offset_bytes, elements * element_bytes(shard.dtype)),
          .dtype = shard.dtype,
          .rows = rows,
          .cols = cols,
          .row_stride = shard.row_stride,
          .grid = scale_grid(shard.scales, rows, cols, weights)};
}

bool lies_before(const SharedScale& a, const SharedScale& b) {
  return a.offset_bytes < b.offset_bytes;
}

}  // namespace

ScaleSearch::ScaleSearch(Job& job, const Catalogue& held, const RankLayout& rank,
                         const PlacedMemory& weights, std::vector<BlockId> shared, Device& device,
                         Kernels& kernels, CopyQueue& queue)
    : job_(job), shared_(std::move(shared)), kernels_(kernels), queue_(queue) {
  std::vector<AmaxView> views;
  if (!weights.empty()) {
    for (const auto& shard : scaled_shards(rank, held)) {
      views.push_back(view_of(shard, weights));
      bytes_ += shard.box.elements() * element_bytes(shard.dtype);
    }
    places_ = shared_scales(rank, held, shared_);
  }
  batch_ = kernels_.prepare_scales(views);
  if (places_.empty()) return;
  const auto [first, last] = std::minmax_element(places_.begin(), places_.end(), lies_before);
  first_byte_ = first->offset_bytes;
  const uint64_t bytes = last->offset_bytes + sizeof(float) - first_byte_;
  window_ = device.allocate_host(bytes);
  device_window_ = weights.at(first_byte_, bytes);
}

uint64_t ScaleSearch::run() {
  batch_->find_amax();
  // The same on every rank: usually no block is shared.
  if (!shared_.empty()) settle_shared();
  batch_->finish();
  kernels_.wait("the search for scales", job_.deadline(), job_);
  return bytes_;
}

void ScaleSearch::settle_shared() {
  kernels_.wait("the search for the largest values of blocks", job_.deadline(), job_);
  const auto what = "the scales of shared blocks";
  if (window_) {
    const auto bytes = window_->bytes();
    queue_.copy(bytes.data(), device_window_, bytes.size());
    queue_.finish(what, job_.deadline(), job_);
  }
  const auto common = common_values();
  if (!window_) return;
  for (const auto& place : places_) {
    const auto bits = static_cast<uint32_t>(common[place.block]);
    std::memcpy(&window_->bytes()[place.offset_bytes - first_byte_], &bits, sizeof(bits));
  }
  const auto bytes = window_->bytes();
  queue_.copy(device_window_, bytes.data(), bytes.size());
  queue_.finish(what, job_.deadline(), job_);
}

/// By shared block: the bits of the largest value of all ranks. As bits, because a NaN is larger
/// than all else then.
std::vector<uint64_t> ScaleSearch::common_values() {
  std::vector<uint64_t> largest(shared_.size(), 0);
  for (const auto& place : places_) {
    uint32_t bits = 0;
    std::memcpy(&bits, &window_->bytes()[place.offset_bytes - first_byte_], sizeof(bits));
    largest[place.block] = std::max<uint64_t>(largest[place.block], bits);
  }
  job_.all_reduce_max(largest, "the largest values of shared blocks");
  return largest;
}

}  // namespace awex
