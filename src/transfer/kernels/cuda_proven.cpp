#include "transfer/kernels/cuda_proven.hpp"

#include <vector>

#include "memory/cuda_owners.hpp"
#include "model/digest.hpp"
#include "transfer/kernels/cuda_batch.hpp"
#include "transfer/kernels/cuda_convert_launch.hpp"
#include "transfer/kernels/cuda_describe.hpp"
#include "transfer/kernels/cuda_proven_launch.hpp"
#include "transfer/kernels/cuda_sums.hpp"

namespace awex {
namespace {

using cuda::ConvertDescriptor;
using cuda::ConvertedDigestDescriptor;
using cuda::CopyDescriptor;
using cuda::DigestDescriptor;
using cuda::LaunchOrder;
using cuda::LaunchShape;
using cuda::LaunchStep;
using cuda::TouchedRows;

uint64_t address(const std::byte* data) { return reinterpret_cast<uintptr_t>(data); }

TouchedRows touched_rows(const std::byte* data, uint64_t stride, const CopyDescriptor& descriptor) {
  return {.begin = address(data),
          .row_bytes = descriptor.grid.row_units * descriptor.width,
          .stride = stride,
          .grid = descriptor.grid,
          .unit_bytes = descriptor.width};
}

TouchedRows touched_rows(const DigestDescriptor& descriptor) {
  return {.begin = address(descriptor.data),
          .row_bytes = descriptor.cols * descriptor.element_size,
          .stride = descriptor.row_stride * descriptor.element_size,
          .grid = descriptor.grid,
          .unit_bytes = static_cast<uint32_t>(kDigestLanes * descriptor.element_size),
          // A row that begins inside a group has its second group earlier by what is missing.
          .early_bytes = descriptor.whole_groups
                             ? 0
                             : static_cast<uint32_t>((kDigestLanes - 1) * descriptor.element_size)};
}

LaunchOrder order(const std::vector<CopyDescriptor>& copies,
                  const std::vector<DigestDescriptor>& views, const LaunchShape& shape) {
  std::vector<cuda::TouchedByCopy> by_copies;
  by_copies.reserve(copies.size());
  for (const auto& descriptor : copies) {
    by_copies.push_back({touched_rows(descriptor.from, descriptor.from_stride, descriptor),
                         touched_rows(descriptor.to, descriptor.to_stride, descriptor)});
  }
  std::vector<TouchedRows> by_views;
  by_views.reserve(views.size());
  for (const auto& descriptor : views) by_views.push_back(touched_rows(descriptor));
  return cuda::order_launch(by_copies, by_views, shape);
}

/// Copies and views that keep their dtype, ready on the device for one launch.
class OneLaunch {
 public:
  OneLaunch(const std::vector<CopyDescriptor>& copies, const std::vector<DigestDescriptor>& views,
            const LaunchShape& shape, cudaStream_t stream)
      : OneLaunch(copies, views, order(copies, views, shape), stream) {}

  void run(uint64_t* sums, cudaStream_t stream) {
    if (steps_.size() == 0) return;
    if (left_.size() > 0) {
      AWEX_CHECK(cudaMemcpyAsync(left_.data(), stretch_tiles_.data(), left_.bytes(),
                                 cudaMemcpyDeviceToDevice, stream),
                 "reset the counters of {} stretches of copies", left_.size());
    }
    const cuda::ProvenBatch batch{.steps = steps_.data(),
                                  .copies = copies_.data(),
                                  .views = views_.data(),
                                  .copy_count = static_cast<uint32_t>(copies_.size()),
                                  .left = left_.data(),
                                  .sums = sums};
    AWEX_CHECK(cuda::launch_proven_copies(batch, static_cast<uint32_t>(steps_.size()), stream),
               "launch {} copies with {} digests", copies_.size(), views_.size());
  }

 private:
  OneLaunch(const std::vector<CopyDescriptor>& copies, const std::vector<DigestDescriptor>& views,
            const LaunchOrder& order, cudaStream_t stream)
      : copies_(std::span(copies), stream),
        views_(std::span(views), stream),
        steps_(std::span(order.steps), stream),
        stretch_tiles_(std::span(order.stretch_tiles), stream),
        left_(order.stretch_tiles.size()) {}

  DeviceArray<CopyDescriptor> copies_;
  DeviceArray<DigestDescriptor> views_;
  DeviceArray<LaunchStep> steps_;
  DeviceArray<uint32_t> stretch_tiles_;
  DeviceArray<uint32_t> left_;
};

class CudaProvenCopies final : public DigestBatch {
 public:
  CudaProvenCopies(std::span<const StridedCopy> copies, std::span<const DigestView> views,
                   uint32_t sum_count, cudaStream_t stream, const LaunchShape& shape)
      : stream_(stream),
        converting_(cuda::describe_converting_copies(copies), stream),
        plain_(cuda::describe_copies(copies), cuda::describe_views(views, sum_count), shape,
               stream),
        converted_(cuda::describe_converted_views(views, sum_count), stream),
        sums_(sum_count, stream) {}

  void run() override {
    sums_.reset();
    AWEX_CHECK(cuda::launch_convert(converting_.descriptors(), converting_.owners(),
                                    converting_.tiles(), stream_),
               "launch copies that convert");
    plain_.run(sums_.data(), stream_);
    AWEX_CHECK(cuda::launch_digest_converted(converted_.descriptors(), converted_.owners(),
                                             converted_.tiles(), sums_.data(), stream_),
               "launch digests that convert");
    sums_.fetch();
  }

  [[nodiscard]] std::span<const uint64_t> sums() const override { return sums_.fetched(); }

 private:
  cudaStream_t stream_;
  cuda::TiledBatch<ConvertDescriptor> converting_;
  OneLaunch plain_;
  cuda::TiledBatch<ConvertedDigestDescriptor> converted_;
  cuda::DeviceSums sums_;
};

}  // namespace

std::unique_ptr<DigestBatch> make_cuda_proven_copies(std::span<const StridedCopy> copies,
                                                     std::span<const DigestView> views,
                                                     uint32_t sum_count, cudaStream_t stream,
                                                     const LaunchShape& shape) {
  return std::make_unique<CudaProvenCopies>(copies, views, sum_count, stream, shape);
}

}  // namespace awex
