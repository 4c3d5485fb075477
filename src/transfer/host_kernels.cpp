#include "transfer/host_kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "model/digest.hpp"
#include "transfer/host_tiles.hpp"

namespace awex {
namespace {

constexpr uint64_t kTileBytes = 256ULL << 10;

/// The same bytes as one row, where rows follow each other without gaps on both sides.
StridedCopy as_few_rows(StridedCopy copy) {
  if (copy.from_stride == copy.row_bytes && copy.to_stride == copy.row_bytes && copy.rows > 0) {
    copy.row_bytes = copy.bytes();
    copy.rows = 1;
  }
  return copy;
}

bool comes_before(const Difference& a, const Difference& b) {
  return std::tie(a.copy, a.row, a.byte_in_row) < std::tie(b.copy, b.row, b.byte_in_row);
}

class HostCopyBatch final : public CopyBatch {
 public:
  HostCopyBatch(std::span<const StridedCopy> copies, ThreadPool& pool) : pool_(pool) {
    for (const auto& copy : copies) {
      row_bytes_.push_back(copy.row_bytes);
      copies_.push_back(as_few_rows(copy));
      append_tiles(tiles_, copies_.size() - 1, copies_.back().rows, copies_.back().row_bytes,
                   kTileBytes);
    }
  }

  void copy() override {
    for_each_piece([](const Piece& piece) {
      std::memcpy(piece.to, piece.from, piece.bytes);
      return true;
    });
  }

  void compare() override {
    difference_.reset();
    for_each_piece([this](const Piece& piece) {
      if (std::memcmp(piece.to, piece.from, piece.bytes) == 0) return true;
      note_difference(piece);
      return false;
    });
  }

  [[nodiscard]] std::optional<Difference> difference() const override { return difference_; }

 private:
  /// Bytes that lie contiguously on both sides.
  struct Piece {
    uint64_t copy;
    uint64_t offset;  ///< Of the first byte, counted over the copy's rows without their gaps.
    const std::byte* from;
    std::byte* to;
    uint64_t bytes;
  };

  /// Calls work(piece) over all pieces; a tile ends early when it returns false.
  template <class Work>
  void for_each_piece(const Work& work) {
    pool_.for_each(tiles_.size(), [&](size_t index) {
      const auto& tile = tiles_[index];
      const auto& copy = copies_[tile.item];
      for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
        if (!work(Piece{tile.item, row * copy.row_bytes + tile.first_col,
                        copy.from + row * copy.from_stride + tile.first_col,
                        copy.to + row * copy.to_stride + tile.first_col, tile.cols})) {
          return;
        }
      }
    });
  }

  void note_difference(const Piece& piece) {
    const auto* differing = std::mismatch(piece.from, piece.from + piece.bytes, piece.to).first;
    const uint64_t offset = piece.offset + static_cast<uint64_t>(differing - piece.from);
    const uint64_t row_bytes = row_bytes_[piece.copy];
    const Difference found{piece.copy, offset / row_bytes, offset % row_bytes};
    const std::lock_guard lock(mutex_);
    if (!difference_ || comes_before(found, *difference_)) difference_ = found;
  }

  ThreadPool& pool_;
  std::vector<StridedCopy> copies_;
  std::vector<uint64_t> row_bytes_;  ///< As the caller counts rows.
  std::vector<HostTile> tiles_;
  std::mutex mutex_;
  std::optional<Difference> difference_;
};

/// The same elements as one row, where rows follow each other in memory and in the canonical
/// tensor.
DigestView as_few_rows(DigestView view) {
  if (view.row_stride == view.cols && view.canonical_cols == view.cols && view.rows > 0) {
    view.cols *= view.rows;
    view.rows = 1;
  }
  return view;
}

class HostDigestBatch final : public DigestBatch {
 public:
  HostDigestBatch(std::span<const DigestView> views, uint32_t slots, ThreadPool& pool)
      : pool_(pool), sums_(slots) {
    for (const auto& view : views) {
      if (view.slot >= slots) {
        throw runtime_error(fmt::format("cannot prepare a digest: slot {} of {}", view.slot, slots),
                            "this is a fault of awex-colocate: please report it");
      }
      views_.push_back(as_few_rows(view));
      append_tiles(tiles_, views_.size() - 1, views_.back().rows, views_.back().cols,
                   kTileBytes / view.element_size);
    }
  }

  void run() override {
    std::fill(sums_.begin(), sums_.end(), 0);
    pool_.for_each(tiles_.size(), [this](size_t index) {
      const auto& tile = tiles_[index];
      std::atomic_ref(sums_[views_[tile.item].slot])
          .fetch_add(sum(tile), std::memory_order_relaxed);
    });
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return sums_; }

 private:
  [[nodiscard]] uint64_t sum(const HostTile& tile) const {
    const auto& view = views_[tile.item];
    uint64_t total = 0;
    for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      const auto* data = view.data + (row * view.row_stride + tile.first_col) * view.element_size;
      total += digest_elements(view.key, view.element_size,
                               view.first_index + row * view.canonical_cols + tile.first_col,
                               {data, tile.cols * view.element_size});
    }
    return total;
  }

  ThreadPool& pool_;
  std::vector<DigestView> views_;
  std::vector<HostTile> tiles_;
  std::vector<uint64_t> sums_;
};

class HostKernels final : public Kernels {
 public:
  explicit HostKernels(size_t threads) : pool_(threads) {}

  [[nodiscard]] std::unique_ptr<CopyBatch> prepare_copies(
      std::span<const StridedCopy> copies) override {
    return std::make_unique<HostCopyBatch>(copies, pool_);
  }
  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_digests(std::span<const DigestView> views,
                                                             uint32_t slots) override {
    return std::make_unique<HostDigestBatch>(views, slots, pool_);
  }
  [[nodiscard]] void* stream() const override { return nullptr; }

  /// The work is done already; the job's other ranks may still have something to say.
  void wait(const std::string& /*what*/, const Deadline& /*deadline*/,
            WaitMonitor& monitor) override {
    monitor.poll();
  }

 private:
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<Kernels> make_host_kernels(Device& /*device*/, size_t threads) {
  return std::make_unique<HostKernels>(threads);
}

}  // namespace awex
