#include "transfer/cuda_kernels.hpp"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "memory/cuda_owners.hpp"
#include "model/digest.hpp"
#include "transfer/cuda_batch.hpp"
#include "transfer/cuda_convert_launch.hpp"
#include "transfer/cuda_launch.hpp"

namespace awex {
namespace {

uint64_t address(const std::byte* data) { return reinterpret_cast<uintptr_t>(data); }

/// The widest access, 16 bytes at most, that an address or distance which is a multiple of `bits`'
/// lowest one allows.
uint32_t widest_access(uint64_t bits) {
  uint32_t width = 16;
  while (bits % width != 0) width /= 2;
  return width;
}

cuda::CopyPiece describe_copy(const StridedCopy& copy, uint64_t first_byte) {
  const bool gapless =
      copy.rows <= 1 || (copy.from_stride == copy.row_bytes && copy.to_stride == copy.row_bytes);
  const uint64_t row_bytes = gapless ? copy.bytes() : copy.row_bytes;
  const uint64_t strides = gapless ? 0 : copy.from_stride | copy.to_stride;
  cuda::CopyPiece piece;
  piece.from = copy.from;
  piece.to = copy.to;
  piece.from_stride = copy.from_stride;
  piece.to_stride = copy.to_stride;
  piece.width = widest_access(address(copy.from) | address(copy.to) | row_bytes | strides);
  piece.grid.units = copy.bytes() / piece.width;
  piece.grid.row_units = row_bytes / piece.width;
  piece.first_byte = first_byte;
  return piece;
}

/// Whether all units of rows of `cols` elements are whole, and lie where accesses of 16 bytes, or
/// of a whole unit if that is smaller, can reach them. `places` holds the lowest bits of all
/// addresses and distances.
bool has_whole_units(uint64_t cols, uint64_t places, uint64_t element_size) {
  return cols % cuda::kUnitElements == 0 &&
         places % std::min<uint64_t>(cuda::kUnitElements * element_size, 16) == 0;
}

/// Rows matter to scales alone.
bool depends_on_rows(const Conversion& conversion) { return conversion.to == DType::kF8E4M3; }

cuda::ConvertPiece describe_converting_copy(const StridedCopy& copy, uint64_t first_byte) {
  const auto& conversion = *copy.conversion;
  const uint64_t from_size = element_bytes(conversion.from);
  const uint64_t to_size = element_bytes(conversion.to);
  const uint64_t cols = copy.row_bytes / to_size;
  check_conversion(conversion, copy.rows, cols);
  const bool gapless = copy.from_stride == cols * from_size && copy.to_stride == copy.row_bytes;
  const bool as_one_row = copy.rows <= 1 || (gapless && !depends_on_rows(conversion));
  const uint64_t rows = as_one_row ? std::min<uint64_t>(copy.rows, 1) : copy.rows;
  cuda::ConvertPiece piece;
  piece.from.data = copy.from;
  piece.from.row_stride = rows > 1 ? copy.from_stride : 0;
  piece.from.cols = as_one_row ? cols * copy.rows : cols;
  piece.from.conversion = conversion;
  piece.to = copy.to;
  piece.to_stride = rows > 1 ? copy.to_stride : 0;
  piece.from.whole_units =
      has_whole_units(piece.from.cols, address(copy.from) | piece.from.row_stride, from_size) &&
      has_whole_units(piece.from.cols, address(copy.to) | piece.to_stride, to_size);
  piece.grid.row_units =
      piece.from.cols / cuda::kUnitElements + (piece.from.cols % cuda::kUnitElements != 0);
  piece.grid.units = rows * piece.grid.row_units;
  piece.first_byte = first_byte;
  return piece;
}

/// Two launches: copies that keep their dtype move bytes, the others elements.
class CudaCopyBatch final : public CopyBatch {
 public:
  CudaCopyBatch(std::span<const StridedCopy> copies, cudaStream_t stream)
      : copies_(copies.begin(), copies.end()),
        first_bytes_(sum_before(copies)),
        stream_(stream),
        plain_(describe(copies_, first_bytes_), stream),
        converting_(describe_converting(copies_, first_bytes_), stream),
        first_(1),
        found_(1, cuda::kNoDifference) {}

  void copy() override {
    AWEX_CHECK(cuda::launch_copy(plain_.pieces(), plain_.owners(), plain_.tiles(), stream_),
               "launch a batch of {} copies", copies_.size());
    AWEX_CHECK(cuda::launch_convert(converting_.pieces(), converting_.owners(), converting_.tiles(),
                                    stream_),
               "launch the converting ones of {} copies", copies_.size());
  }

  void compare() override {
    AWEX_CHECK(cudaMemsetAsync(first_.data(), 0xff, first_.bytes(), stream_),
               "reset the result of a comparison");
    AWEX_CHECK(cuda::launch_compare(plain_.pieces(), plain_.owners(), plain_.tiles(), first_.data(),
                                    stream_),
               "launch a comparison of {} copies", copies_.size());
    AWEX_CHECK(cuda::launch_compare_converted(converting_.pieces(), converting_.owners(),
                                              converting_.tiles(), first_.data(), stream_),
               "launch a comparison of the converting ones of {} copies", copies_.size());
    AWEX_CHECK(cudaMemcpyAsync(found_.values().data(), first_.data(), first_.bytes(),
                               cudaMemcpyDeviceToHost, stream_),
               "fetch the result of a comparison");
  }

  [[nodiscard]] std::optional<Difference> difference() const override {
    const uint64_t position = found_.values().front();
    if (position == cuda::kNoDifference) return std::nullopt;
    const auto after = std::upper_bound(first_bytes_.begin(), first_bytes_.end(), position);
    const auto copy = static_cast<uint64_t>(after - first_bytes_.begin()) - 1;
    const uint64_t byte = position - first_bytes_[copy];
    const uint64_t row_bytes = copies_[copy].row_bytes;
    return Difference{copy, byte / row_bytes, byte % row_bytes};
  }

 private:
  static std::vector<uint64_t> sum_before(std::span<const StridedCopy> copies) {
    std::vector<uint64_t> sums;
    sums.reserve(copies.size());
    uint64_t sum = 0;
    for (const auto& copy : copies) {
      sums.push_back(sum);
      sum += copy.bytes();
    }
    return sums;
  }

  static std::vector<cuda::CopyPiece> describe(const std::vector<StridedCopy>& copies,
                                               const std::vector<uint64_t>& first_bytes) {
    std::vector<cuda::CopyPiece> pieces;
    pieces.reserve(copies.size());
    for (size_t i = 0; i < copies.size(); ++i) {
      if (copies[i].conversion) continue;
      pieces.push_back(describe_copy(copies[i], first_bytes[i]));
    }
    return pieces;
  }

  static std::vector<cuda::ConvertPiece> describe_converting(
      const std::vector<StridedCopy>& copies, const std::vector<uint64_t>& first_bytes) {
    std::vector<cuda::ConvertPiece> pieces;
    for (size_t i = 0; i < copies.size(); ++i) {
      if (!copies[i].conversion) continue;
      pieces.push_back(describe_converting_copy(copies[i], first_bytes[i]));
    }
    return pieces;
  }

  std::vector<StridedCopy> copies_;
  std::vector<uint64_t> first_bytes_;  ///< Bytes of the batch before each copy.
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::CopyPiece> plain_;
  cuda::TiledBatch<cuda::ConvertPiece> converting_;
  DeviceArray<uint64_t> first_;
  PinnedArray<uint64_t> found_;
};

/// Whether a view's rows begin and end with a group of canonical elements, in memory where one or
/// two wide loads can fetch a group.
bool has_whole_groups(const DigestView& view) {
  const uint64_t load_bytes = std::min<uint64_t>(kDigestLanes * view.element_size, 16);
  const uint64_t row_bytes = view.rows > 1 ? view.row_stride * view.element_size : 0;
  const uint64_t row_step = view.rows > 1 ? view.canonical_cols : 0;
  return (address(view.data) | row_bytes) % load_bytes == 0 &&
         (view.first_index | view.cols | row_step) % kDigestLanes == 0;
}

/// Units of a view: groups of canonical elements.
cuda::UnitGrid groups_of(const DigestView& view, bool whole_groups) {
  cuda::UnitGrid grid;
  if (view.rows == 0 || view.cols == 0) return grid;
  // A row of n elements that begins anywhere in a group touches at most (n + 6) / 8 + 1 groups.
  grid.row_units =
      whole_groups ? view.cols / kDigestLanes : (view.cols + kDigestLanes - 2) / kDigestLanes + 1;
  grid.units = view.rows * grid.row_units;
  return grid;
}

void check_view(const DigestView& view, uint32_t slots) {
  const std::array known_sizes{1U, 2U, 4U};
  if (view.slot >= slots ||
      std::count(known_sizes.begin(), known_sizes.end(), view.element_size) == 0) {
    throw runtime_error(fmt::format("cannot digest elements of {} bytes into slot {} of {}",
                                    view.element_size, view.slot, slots));
  }
  if (view.conversion) check_conversion(*view.conversion, view.rows, view.cols);
}

cuda::DigestPiece describe_view(const DigestView& original) {
  const auto view = cuda::collapse(original);
  cuda::DigestPiece piece;
  piece.data = view.data;
  piece.row_stride = view.row_stride;
  piece.cols = view.cols;
  piece.first_index = view.first_index;
  piece.canonical_cols = view.canonical_cols;
  piece.key = view.key;
  piece.slot = view.slot;
  piece.element_size = view.element_size;
  piece.whole_groups = has_whole_groups(view);
  piece.grid = groups_of(view, piece.whole_groups);
  return piece;
}

cuda::ConvertedDigestPiece describe_converted_view(const DigestView& original) {
  const auto view = depends_on_rows(*original.conversion) ? original : cuda::collapse(original);
  cuda::ConvertedDigestPiece piece;
  piece.from.data = view.data;
  piece.from.row_stride = view.row_stride * view.element_size;
  piece.from.cols = view.cols;
  piece.from.conversion = *view.conversion;
  piece.from.whole_units = has_whole_groups(view);
  piece.first_index = view.first_index;
  piece.canonical_cols = view.canonical_cols;
  piece.key = view.key;
  piece.slot = view.slot;
  piece.grid = groups_of(view, piece.from.whole_units);
  return piece;
}

class CudaDigestBatch final : public DigestBatch {
 public:
  CudaDigestBatch(std::span<const DigestView> views, uint32_t slots, cudaStream_t stream)
      : stream_(stream),
        plain_(describe(views, slots), stream),
        converted_(describe_converted(views), stream),
        sums_(slots),
        fetched_(slots, uint64_t{0}) {}

  void run() override {
    if (sums_.size() == 0) return;
    AWEX_CHECK(cudaMemsetAsync(sums_.data(), 0, sums_.bytes(), stream_), "reset {} digests",
               sums_.size());
    AWEX_CHECK(cuda::launch_digest(plain_.pieces(), plain_.owners(), plain_.tiles(), sums_.data(),
                                   stream_),
               "launch the digests of {} tensors", sums_.size());
    AWEX_CHECK(cuda::launch_digest_converted(converted_.pieces(), converted_.owners(),
                                             converted_.tiles(), sums_.data(), stream_),
               "launch the digests of {} tensors", sums_.size());
    AWEX_CHECK(cudaMemcpyAsync(fetched_.values().data(), sums_.data(), sums_.bytes(),
                               cudaMemcpyDeviceToHost, stream_),
               "fetch {} digests", sums_.size());
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return fetched_.values(); }

 private:
  static std::vector<cuda::DigestPiece> describe(std::span<const DigestView> views,
                                                 uint32_t slots) {
    std::vector<cuda::DigestPiece> pieces;
    pieces.reserve(views.size());
    for (const auto& view : views) {
      check_view(view, slots);
      if (!view.conversion) pieces.push_back(describe_view(view));
    }
    return pieces;
  }

  static std::vector<cuda::ConvertedDigestPiece> describe_converted(
      std::span<const DigestView> views) {
    std::vector<cuda::ConvertedDigestPiece> pieces;
    for (const auto& view : views) {
      if (view.conversion) pieces.push_back(describe_converted_view(view));
    }
    return pieces;
  }

  cudaStream_t stream_;
  cuda::TiledBatch<cuda::DigestPiece> plain_;
  cuda::TiledBatch<cuda::ConvertedDigestPiece> converted_;
  DeviceArray<uint64_t> sums_;
  PinnedArray<uint64_t> fetched_;
};

cuda::ScalePiece describe_scales(const AmaxView& view) {
  check_scales_source(view.dtype, view.grid, view.rows, view.cols);
  cuda::ScalePiece piece;
  piece.data = view.data;
  piece.row_stride = view.row_stride;
  piece.dtype = view.dtype;
  piece.rows = {view.rows, view.grid.block, view.grid.row_in_block};
  piece.cols = {view.cols, view.grid.block, view.grid.col_in_block};
  piece.scales = view.grid;
  piece.grid.row_units = piece.cols.count();
  piece.grid.units = piece.rows.count() * piece.grid.row_units;
  return piece;
}

class CudaScaleBatch final : public ScaleBatch {
 public:
  CudaScaleBatch(std::span<const AmaxView> views, cudaStream_t stream)
      : views_(views.size()),
        stream_(stream),
        searches_(describe(views), stream, 1),
        scales_(describe(views), stream) {}

  void find_amax() override {
    AWEX_CHECK(
        cuda::launch_amax(searches_.pieces(), searches_.owners(), searches_.tiles(), stream_),
        "launch the search for the largest values of {} views", views_);
  }

  void finish() override {
    AWEX_CHECK(cuda::launch_scales(scales_.pieces(), scales_.owners(), scales_.tiles(), stream_),
               "launch the scales of {} views", views_);
  }

 private:
  static std::vector<cuda::ScalePiece> describe(std::span<const AmaxView> views) {
    std::vector<cuda::ScalePiece> pieces;
    pieces.reserve(views.size());
    for (const auto& view : views) pieces.push_back(describe_scales(view));
    return pieces;
  }

  uint64_t views_;
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::ScalePiece> searches_;  ///< In tiles of one block.
  cuda::TiledBatch<cuda::ScalePiece> scales_;
};

class CudaKernels final : public Kernels {
 public:
  [[nodiscard]] std::unique_ptr<CopyBatch> prepare_copies(
      std::span<const StridedCopy> copies) override {
    return std::make_unique<CudaCopyBatch>(copies, stream_.get());
  }

  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_digests(std::span<const DigestView> views,
                                                             uint32_t slots) override {
    return std::make_unique<CudaDigestBatch>(views, slots, stream_.get());
  }

  [[nodiscard]] std::unique_ptr<ScaleBatch> prepare_scales(
      std::span<const AmaxView> views) override {
    return std::make_unique<CudaScaleBatch>(views, stream_.get());
  }

  [[nodiscard]] void* stream() const override { return stream_.get(); }

  void wait(const std::string& what, const Deadline& deadline, WaitMonitor& monitor) override {
    const auto stream = stream_.get();
    wait_until([&] { return is_done(cudaStreamQuery(stream), "cudaStreamQuery", what); }, what,
               deadline, monitor);
  }

 private:
  CudaStream stream_;
};

}  // namespace

std::unique_ptr<Kernels> make_cuda_kernels(Device& device) {
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  return std::make_unique<CudaKernels>();
}

}  // namespace awex
