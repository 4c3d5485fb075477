#include "transfer/kernels/host_kernels.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "model/digest.hpp"
#include "transfer/kernels/host_conversion.hpp"
#include "transfer/kernels/host_streaming.hpp"
#include "transfer/kernels/host_tiles.hpp"

namespace awex {
namespace {

/// Converted elements that are only looked at are kept on the stack, this many bytes at a time.
constexpr uint64_t kBufferBytes = 4096;

/// A StridedCopy in cells, which are what is never split: elements if they change dtype, else
/// bytes.
struct CellCopy {
  explicit CellCopy(const StridedCopy& copy)
      : from(copy.from),
        to(copy.to),
        from_stride(copy.from_stride),
        to_stride(copy.to_stride),
        conversion(copy.conversion),
        rows(copy.rows),
        from_cell(conversion ? element_bytes(conversion->from) : 1),
        to_cell(conversion ? element_bytes(conversion->to) : 1),
        cols(copy.row_bytes / to_cell) {
    if (conversion) check_conversion(*conversion, rows, cols);
    // Scales depend on the row; other rows without gaps on both sides are one.
    const bool gapless = from_stride == cols * from_cell && to_stride == cols * to_cell;
    if (!gapless || (conversion && conversion->to == DType::kF8E4M3)) return;
    cols *= rows;
    rows = std::min<uint64_t>(rows, 1);
  }

  const std::byte* from;
  std::byte* to;
  uint64_t from_stride;  ///< Bytes.
  uint64_t to_stride;
  std::optional<Conversion> conversion;
  uint64_t rows;
  uint64_t from_cell;  ///< Bytes.
  uint64_t to_cell;
  uint64_t cols;
};

bool comes_before(const Difference& a, const Difference& b) {
  return std::tie(a.copy, a.row, a.byte_in_row) < std::tie(b.copy, b.row, b.byte_in_row);
}

class HostCopyBatch final : public CopyBatch {
 public:
  HostCopyBatch(std::span<const StridedCopy> copies, ThreadPool& pool) : pool_(pool) {
    for (const auto& copy : copies) {
      row_bytes_.push_back(copy.row_bytes);
      copies_.emplace_back(copy);
      const auto& cells = copies_.back();
      tiles_.add(copies_.size() - 1, cells.rows, cells.cols,
                 std::max(cells.from_cell, cells.to_cell));
    }
  }

  void copy() override {
    tiles_.for_each(pool_, [this](const HostTile& tile) {
      const auto& copy = copies_[tile.item];
      if (copy.conversion) {
        for_each_run(tile, convert);
        return;
      }
      stream_rows(copy.to + tile.first_row * copy.to_stride + tile.first_col, copy.to_stride,
                  copy.from + tile.first_row * copy.from_stride + tile.first_col, copy.from_stride,
                  tile.rows, tile.cols);
    });
  }

  void compare() override {
    difference_.reset();
    tiles_.for_each(pool_, [this](const HostTile& tile) {
      for_each_run(tile, [this](const CellRun& run) {
        return run.copy.conversion ? compare_converted(run)
                                   : compare_bytes(run, 0, run.from, run.cells);
      });
    });
  }

  [[nodiscard]] std::optional<Difference> difference() const override { return difference_; }

 private:
  /// Cells that lie contiguously on both sides.
  struct CellRun {
    uint64_t index;  ///< Of the copy.
    const CellCopy& copy;
    uint64_t row;  ///< Of the first cell.
    uint64_t col;
    const std::byte* from;
    std::byte* to;
    uint64_t cells;
  };

  /// Calls work(run) over a tile's runs, until it returns false.
  template <class Work>
  void for_each_run(const HostTile& tile, const Work& work) const {
    const auto& copy = copies_[tile.item];
    for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      if (!work(CellRun{tile.item, copy, row, tile.first_col,
                        copy.from + row * copy.from_stride + tile.first_col * copy.from_cell,
                        copy.to + row * copy.to_stride + tile.first_col * copy.to_cell,
                        tile.cols})) {
        return;
      }
    }
  }

  static bool convert(const CellRun& run) {
    convert_elements(*run.copy.conversion, run.row, run.col, run.cells, run.from, run.to);
    return true;
  }

  /// Whether the run's target holds `wanted` from its byte `first` on; notes it if not.
  bool compare_bytes(const CellRun& run, uint64_t first, const std::byte* wanted, uint64_t bytes) {
    const auto* held = run.to + first;
    if (std::memcmp(held, wanted, bytes) == 0) return true;
    const auto* differing = std::mismatch(wanted, wanted + bytes, held).first;
    const uint64_t cells_before = run.row * run.copy.cols + run.col;
    note_difference(run.index, cells_before * run.copy.to_cell + first +
                                   static_cast<uint64_t>(differing - wanted));
    return false;
  }

  bool compare_converted(const CellRun& run) {
    std::array<std::byte, kBufferBytes> wanted;
    const auto& copy = run.copy;
    const uint64_t cells_at_once = wanted.size() / copy.to_cell;
    for (uint64_t done = 0; done < run.cells; done += cells_at_once) {
      const uint64_t cells = std::min(cells_at_once, run.cells - done);
      convert_elements(*copy.conversion, run.row, run.col + done, cells,
                       run.from + done * copy.from_cell, wanted.data());
      if (!compare_bytes(run, done * copy.to_cell, wanted.data(), cells * copy.to_cell)) {
        return false;
      }
    }
    return true;
  }

  /// `offset` counts target bytes over the copy's rows without their gaps.
  void note_difference(uint64_t copy, uint64_t offset) {
    const Difference found{copy, offset / row_bytes_[copy], offset % row_bytes_[copy]};
    const std::lock_guard lock(mutex_);
    if (!difference_ || comes_before(found, *difference_)) difference_ = found;
  }

  ThreadPool& pool_;
  std::vector<CellCopy> copies_;
  std::vector<uint64_t> row_bytes_;  ///< As the caller counts rows.
  HostTiles tiles_;
  std::mutex mutex_;
  std::optional<Difference> difference_;
};

/// The same elements as one row, where rows follow each other in memory and in the canonical
/// tensor, and no scale depends on them.
DigestView as_few_rows(DigestView view) {
  if (view.conversion && view.conversion->to == DType::kF8E4M3) return view;
  if (view.row_stride == view.cols && view.canonical_cols == view.cols && view.rows > 0) {
    view.cols *= view.rows;
    view.rows = 1;
  }
  return view;
}

/// Views in tiles that threads add to sums.
class HostViews {
 public:
  HostViews(std::span<const DigestView> views, uint32_t sum_count, ThreadPool& pool) : pool_(pool) {
    for (const auto& view : views) {
      if (view.sum >= sum_count) {
        throw runtime_error(
            fmt::format("cannot prepare a digest: sum {} of {}", view.sum, sum_count),
            "this is a fault of awex-colocate: please report it");
      }
      if (view.conversion) check_conversion(*view.conversion, view.rows, view.cols);
      views_.push_back(as_few_rows(view));
      tiles_.add(views_.size() - 1, views_.back().rows, views_.back().cols, view.element_size);
    }
  }

  void add_to(std::vector<uint64_t>& sums) {
    tiles_.for_each(pool_, [&](const HostTile& tile) {
      std::atomic_ref(sums[views_[tile.item].sum]).fetch_add(sum(tile), std::memory_order_relaxed);
    });
  }

 private:
  [[nodiscard]] uint64_t sum(const HostTile& tile) const {
    const auto& view = views_[tile.item];
    uint64_t total = 0;
    for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      const auto* data = view.data + (row * view.row_stride + tile.first_col) * view.element_size;
      const uint64_t index = view.first_index + row * view.canonical_cols + tile.first_col;
      total += view.conversion ? sum_converted(view, row, tile.first_col, tile.cols, index, data)
                               : digest_elements(view.key, view.element_size, index,
                                                 {data, tile.cols * view.element_size});
    }
    return total;
  }

  /// `index` is the canonical one of the element at (row, col), which lies at `data`.
  [[nodiscard]] static uint64_t sum_converted(const DigestView& view, uint64_t row, uint64_t col,
                                              uint64_t count, uint64_t index,
                                              const std::byte* data) {
    std::array<std::byte, kBufferBytes> converted;
    const uint64_t element_size = element_bytes(view.conversion->to);
    const uint64_t at_once = converted.size() / element_size;
    uint64_t total = 0;
    for (uint64_t done = 0; done < count; done += at_once) {
      const uint64_t elements = std::min(at_once, count - done);
      convert_elements(*view.conversion, row, col + done, elements, data + done * view.element_size,
                       converted.data());
      total += digest_elements(view.key, element_size, index + done,
                               {converted.data(), elements * element_size});
    }
    return total;
  }

  ThreadPool& pool_;
  std::vector<DigestView> views_;
  HostTiles tiles_;
};

class HostDigestBatch final : public DigestBatch {
 public:
  HostDigestBatch(std::span<const DigestView> views, uint32_t sum_count, ThreadPool& pool)
      : views_(views, sum_count, pool), sums_(sum_count) {}

  void run() override {
    std::fill(sums_.begin(), sums_.end(), 0);
    views_.add_to(sums_);
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return sums_; }

 private:
  HostViews views_;
  std::vector<uint64_t> sums_;
};

/// One after the other: the copies pass by the caches, so there is nothing to gain by digesting
/// behind them.
class HostProvenCopies final : public DigestBatch {
 public:
  HostProvenCopies(std::span<const StridedCopy> copies, std::span<const DigestView> views,
                   uint32_t sum_count, ThreadPool& pool)
      : copies_(copies, pool), digests_(views, sum_count, pool) {}

  void run() override {
    copies_.copy();
    digests_.run();
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return digests_.sums(); }

 private:
  HostCopyBatch copies_;
  HostDigestBatch digests_;
};

/// A tile is some whole blocks of one view, so that each scale has one writer.
class HostScaleBatch final : public ScaleBatch {
 public:
  HostScaleBatch(std::span<const AmaxView> views, ThreadPool& pool)
      : views_(views.begin(), views.end()), pool_(pool) {
    for (uint64_t i = 0; i < views_.size(); ++i) {
      const auto& view = views_[i];
      check_scales_source(view.dtype, view.grid, view.rows, view.cols);
      const uint64_t block_bytes =
          uint64_t{view.grid.block} * view.grid.block * element_bytes(view.dtype);
      tiles_.add(i, row_cuts(view).count(), col_cuts(view).count(), block_bytes);
    }
  }

  void find_amax() override {
    for_each_block([](const AmaxView& view, uint64_t block_row, uint64_t block_col) {
      const auto rows = row_cuts(view);
      const auto cols = col_cuts(view);
      const uint64_t row = rows.begin(block_row);
      const uint64_t col = cols.begin(block_col);
      const auto* data = view.data + (row * view.row_stride + col) * element_bytes(view.dtype);
      return largest_magnitude(view.dtype, data, rows.end(block_row) - row,
                               cols.end(block_col) - col, view.row_stride);
    });
  }

  void finish() override {
    for_each_block([](const AmaxView& view, uint64_t block_row, uint64_t block_col) {
      return block_scale(view.grid.scales[block_row * view.grid.row_stride + block_col]);
    });
  }

 private:
  static BlockCuts row_cuts(const AmaxView& view) {
    return {view.rows, view.grid.block, view.grid.row_in_block};
  }
  static BlockCuts col_cuts(const AmaxView& view) {
    return {view.cols, view.grid.block, view.grid.col_in_block};
  }

  /// Gives every block's place in its grid the value(view, row of blocks, column of blocks).
  template <class Value>
  void for_each_block(const Value& value) {
    tiles_.for_each(pool_, [&](const HostTile& tile) {
      const auto& view = views_[tile.item];
      for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
        for (uint64_t col = tile.first_col; col < tile.first_col + tile.cols; ++col) {
          view.grid.scales[row * view.grid.row_stride + col] = value(view, row, col);
        }
      }
    });
  }

  std::vector<AmaxView> views_;
  ThreadPool& pool_;
  HostTiles tiles_;
};

class HostKernels final : public Kernels {
 public:
  explicit HostKernels(size_t threads) : pool_(threads) {}

  [[nodiscard]] std::unique_ptr<CopyBatch> prepare_copies_on(
      Stream /*stream*/, std::span<const StridedCopy> copies) override {
    return std::make_unique<HostCopyBatch>(copies, pool_);
  }
  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_digests(std::span<const DigestView> views,
                                                             uint32_t sum_count) override {
    return std::make_unique<HostDigestBatch>(views, sum_count, pool_);
  }
  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_proven_copies(
      std::span<const StridedCopy> copies, std::span<const DigestView> views,
      uint32_t sum_count) override {
    return std::make_unique<HostProvenCopies>(copies, views, sum_count, pool_);
  }
  [[nodiscard]] std::unique_ptr<ScaleBatch> prepare_scales(
      std::span<const AmaxView> views) override {
    return std::make_unique<HostScaleBatch>(views, pool_);
  }
  [[nodiscard]] void* stream(Stream /*stream*/) const override { return nullptr; }
  void fork() override {}
  void join() override {}

  /// The work is done already, but another rank may have announced a failure.
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
