#include "transfer/cuda_kernels.hpp"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "memory/cuda_owners.hpp"
#include "model/digest.hpp"
#include "transfer/cuda_batch.hpp"
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

class CudaCopyBatch final : public CopyBatch {
 public:
  CudaCopyBatch(std::span<const StridedCopy> copies, cudaStream_t stream)
      : copies_(copies.begin(), copies.end()),
        first_bytes_(sum_before(copies)),
        stream_(stream),
        batch_(describe(copies_, first_bytes_), stream),
        first_(1),
        found_(1, cuda::kNoDifference) {}

  void copy() override {
    AWEX_CHECK(cuda::launch_copy(batch_.pieces(), batch_.owners(), batch_.tiles(), stream_),
               "launch a batch of {} copies", copies_.size());
  }

  void compare() override {
    AWEX_CHECK(cudaMemsetAsync(first_.data(), 0xff, first_.bytes(), stream_),
               "reset the result of a comparison");
    AWEX_CHECK(cuda::launch_compare(batch_.pieces(), batch_.owners(), batch_.tiles(), first_.data(),
                                    stream_),
               "launch a comparison of {} copies", copies_.size());
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
      pieces.push_back(describe_copy(copies[i], first_bytes[i]));
    }
    return pieces;
  }

  std::vector<StridedCopy> copies_;
  std::vector<uint64_t> first_bytes_;  ///< Bytes of the batch before each copy.
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::CopyPiece> batch_;
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

cuda::DigestPiece describe_view(const DigestView& original, uint32_t slots) {
  const std::array known_sizes{1U, 2U, 4U};
  if (original.slot >= slots ||
      std::count(known_sizes.begin(), known_sizes.end(), original.element_size) == 0) {
    throw runtime_error(fmt::format("cannot digest elements of {} bytes into slot {} of {}",
                                    original.element_size, original.slot, slots));
  }
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
  if (view.rows == 0 || view.cols == 0) return piece;
  // A row of n elements that begins anywhere in a group touches at most (n + 6) / 8 + 1 groups.
  piece.grid.row_units = piece.whole_groups ? view.cols / kDigestLanes
                                            : (view.cols + kDigestLanes - 2) / kDigestLanes + 1;
  piece.grid.units = view.rows * piece.grid.row_units;
  return piece;
}

class CudaDigestBatch final : public DigestBatch {
 public:
  CudaDigestBatch(std::span<const DigestView> views, uint32_t slots, cudaStream_t stream)
      : stream_(stream),
        batch_(describe(views, slots), stream),
        sums_(slots),
        fetched_(slots, uint64_t{0}) {}

  void run() override {
    if (sums_.size() == 0) return;
    AWEX_CHECK(cudaMemsetAsync(sums_.data(), 0, sums_.bytes(), stream_), "reset {} digests",
               sums_.size());
    AWEX_CHECK(cuda::launch_digest(batch_.pieces(), batch_.owners(), batch_.tiles(), sums_.data(),
                                   stream_),
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
    for (const auto& view : views) pieces.push_back(describe_view(view, slots));
    return pieces;
  }

  cudaStream_t stream_;
  cuda::TiledBatch<cuda::DigestPiece> batch_;
  DeviceArray<uint64_t> sums_;
  PinnedArray<uint64_t> fetched_;
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
