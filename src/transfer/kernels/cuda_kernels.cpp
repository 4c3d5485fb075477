#include "transfer/kernels/cuda_kernels.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "memory/cuda_owners.hpp"
#include "model/digest.hpp"
#include "transfer/kernels/cuda_batch.hpp"
#include "transfer/kernels/cuda_convert_launch.hpp"
#include "transfer/kernels/cuda_describe.hpp"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/kernels/cuda_proven.hpp"
#include "transfer/kernels/cuda_sums.hpp"

namespace awex {
namespace {

/// Two launches: copies that keep their dtype move bytes, the others elements.
class CudaCopyBatch final : public CopyBatch {
 public:
  CudaCopyBatch(std::span<const StridedCopy> copies, cudaStream_t stream)
      : copies_(copies.begin(), copies.end()),
        first_bytes_(cuda::bytes_before(copies)),
        stream_(stream),
        plain_(cuda::describe_copies(copies), stream),
        converting_(cuda::describe_converting_copies(copies), stream),
        first_(1),
        found_(1, cuda::kNoDifference) {}

  void copy() override {
    AWEX_CHECK(cuda::launch_copy(plain_.descriptors(), plain_.owners(), plain_.tiles(), stream_),
               "launch a batch of {} copies", copies_.size());
    AWEX_CHECK(cuda::launch_convert(converting_.descriptors(), converting_.owners(),
                                    converting_.tiles(), stream_),
               "launch the converting ones of {} copies", copies_.size());
  }

  void compare() override {
    AWEX_CHECK(cudaMemsetAsync(first_.data(), 0xff, first_.bytes(), stream_),
               "reset the result of a comparison");
    AWEX_CHECK(cuda::launch_compare(plain_.descriptors(), plain_.owners(), plain_.tiles(),
                                    first_.data(), stream_),
               "launch a comparison of {} copies", copies_.size());
    AWEX_CHECK(cuda::launch_compare_converted(converting_.descriptors(), converting_.owners(),
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
  std::vector<StridedCopy> copies_;
  std::vector<uint64_t> first_bytes_;  ///< Bytes of the batch before each copy.
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::CopyDescriptor> plain_;
  cuda::TiledBatch<cuda::ConvertDescriptor> converting_;
  DeviceArray<uint64_t> first_;
  PinnedArray<uint64_t> found_;
};

/// Views, ready on the device to be added to sums.
class CudaViews {
 public:
  CudaViews(std::span<const DigestView> views, uint32_t sum_count, cudaStream_t stream)
      : count_(views.size()),
        stream_(stream),
        plain_(cuda::describe_views(views, sum_count), stream),
        converted_(cuda::describe_converted_views(views, sum_count), stream) {}

  void add_to(const cuda::DeviceSums& sums) const {
    AWEX_CHECK(cuda::launch_digest(plain_.descriptors(), plain_.owners(), plain_.tiles(),
                                   sums.data(), stream_),
               "launch the digests of {} views", count_);
    AWEX_CHECK(cuda::launch_digest_converted(converted_.descriptors(), converted_.owners(),
                                             converted_.tiles(), sums.data(), stream_),
               "launch the converting ones of the digests of {} views", count_);
  }

 private:
  uint64_t count_;
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::DigestDescriptor> plain_;
  cuda::TiledBatch<cuda::ConvertedDigestDescriptor> converted_;
};

class CudaDigestBatch final : public DigestBatch {
 public:
  CudaDigestBatch(std::span<const DigestView> views, uint32_t sum_count, cudaStream_t stream)
      : views_(views, sum_count, stream), sums_(sum_count, stream) {}

  void run() override {
    sums_.reset();
    views_.add_to(sums_);
    sums_.fetch();
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return sums_.fetched(); }

 private:
  CudaViews views_;
  cuda::DeviceSums sums_;
};

cuda::ScaleDescriptor describe_scales(const AmaxView& view) {
  check_scales_source(view.dtype, view.grid, view.rows, view.cols);
  cuda::ScaleDescriptor descriptor;
  descriptor.data = view.data;
  descriptor.row_stride = view.row_stride;
  descriptor.dtype = view.dtype;
  descriptor.rows = {view.rows, view.grid.block, view.grid.row_in_block};
  descriptor.cols = {view.cols, view.grid.block, view.grid.col_in_block};
  descriptor.scales = view.grid;
  descriptor.grid.row_units = descriptor.cols.count();
  descriptor.grid.units = descriptor.rows.count() * descriptor.grid.row_units;
  return descriptor;
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
        cuda::launch_amax(searches_.descriptors(), searches_.owners(), searches_.tiles(), stream_),
        "launch the search for the largest values of {} views", views_);
  }

  void finish() override {
    AWEX_CHECK(
        cuda::launch_scales(scales_.descriptors(), scales_.owners(), scales_.tiles(), stream_),
        "launch the scales of {} views", views_);
  }

 private:
  static std::vector<cuda::ScaleDescriptor> describe(std::span<const AmaxView> views) {
    std::vector<cuda::ScaleDescriptor> descriptors;
    descriptors.reserve(views.size());
    for (const auto& view : views) descriptors.push_back(describe_scales(view));
    return descriptors;
  }

  uint64_t views_;
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::ScaleDescriptor> searches_;  ///< In tiles of one block.
  cuda::TiledBatch<cuda::ScaleDescriptor> scales_;
};

class CudaKernels final : public Kernels {
 public:
  [[nodiscard]] std::unique_ptr<CopyBatch> prepare_copies_on(
      Stream stream, std::span<const StridedCopy> copies) override {
    return std::make_unique<CudaCopyBatch>(copies, on(stream));
  }

  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_digests(std::span<const DigestView> views,
                                                             uint32_t sum_count) override {
    return std::make_unique<CudaDigestBatch>(views, sum_count, on(Stream::kMain));
  }

  [[nodiscard]] std::unique_ptr<DigestBatch> prepare_proven_copies(
      std::span<const StridedCopy> copies, std::span<const DigestView> views,
      uint32_t sum_count) override {
    return make_cuda_proven_copies(copies, views, sum_count, on(Stream::kMain));
  }

  [[nodiscard]] std::unique_ptr<ScaleBatch> prepare_scales(
      std::span<const AmaxView> views) override {
    return std::make_unique<CudaScaleBatch>(views, on(Stream::kMain));
  }

  [[nodiscard]] void* stream(Stream stream) const override { return on(stream); }

  void fork() override {
    start_.record(main_.get());
    for (const auto& other : others_) start_.hold_back(other.get());
  }

  void join() override {
    for (size_t i = 0; i < others_.size(); ++i) {
      ends_[i].record(others_[i].get());
      ends_[i].hold_back(main_.get());
    }
  }

  void wait(const std::string& what, const Deadline& deadline, WaitMonitor& monitor) override {
    const auto stream = on(Stream::kMain);
    wait_until([&] { return is_done(cudaStreamQuery(stream), "cudaStreamQuery", what); }, what,
               deadline, monitor);
  }

 private:
  [[nodiscard]] cudaStream_t on(Stream stream) const {
    return stream == Stream::kMain ? main_.get()
                                   : others_.at(static_cast<size_t>(stream) - 1).get();
  }

  CudaStream main_;
  /// Whatever a link waits for goes before what the device does for itself.
  std::array<CudaStream, kStreams - 1> others_{CudaStream(StreamPriority::kHigh),
                                               CudaStream(StreamPriority::kHigh)};
  std::array<CudaEvent, kStreams - 1> ends_;
  CudaEvent start_;
};

}  // namespace

std::unique_ptr<Kernels> make_cuda_kernels(Device& device) {
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  return std::make_unique<CudaKernels>();
}

}  // namespace awex
