#include <vector>

#include "engine/adamw_backends.hpp"
#include "engine/cuda_adamw_launch.hpp"
#include "memory/cuda_check.hpp"
#include "transfer/kernels/cuda_batch.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {
namespace {

uint64_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

/// Whether four neighbouring elements of a row can be loaded at once from every array.
bool can_load_fours(const AdamWView& view, uint64_t element_size) {
  constexpr uint64_t kCount = 4;
  const uint64_t states = address(view.master) | address(view.exp_avg) | address(view.exp_avg_sq);
  const uint64_t row_stride = view.rows > 1 ? view.row_stride : 0;
  return states % (kCount * sizeof(float)) == 0 &&
         address(view.weights) % (kCount * element_size) == 0 &&
         (view.cols | row_stride) % kCount == 0;
}

cuda::AdamWDescriptor describe_view(const AdamWView& original, uint64_t element_size) {
  const auto view = cuda::collapse(original);
  cuda::AdamWDescriptor descriptor;
  descriptor.weights = view.weights;
  descriptor.master = view.master;
  descriptor.exp_avg = view.exp_avg;
  descriptor.exp_avg_sq = view.exp_avg_sq;
  descriptor.row_stride = view.row_stride;
  descriptor.first_index = view.first_index;
  descriptor.canonical_cols = view.canonical_cols;
  descriptor.key = view.key;
  descriptor.fours = can_load_fours(view, element_size);
  descriptor.grid.row_units = descriptor.fours ? view.cols / 4 : view.cols;
  descriptor.grid.units = view.rows * descriptor.grid.row_units;
  return descriptor;
}

std::vector<cuda::AdamWDescriptor> describe_views(std::span<const AdamWView> views, DType dtype) {
  std::vector<cuda::AdamWDescriptor> descriptors;
  descriptors.reserve(views.size());
  for (const auto& view : views) descriptors.push_back(describe_view(view, element_bytes(dtype)));
  return descriptors;
}

class CudaAdamW final : public AdamW {
 public:
  CudaAdamW(Kernels& kernels, std::span<const AdamWView> views, DType dtype)
      : dtype_(dtype),
        stream_(static_cast<cudaStream_t>(kernels.stream(Stream::kMain))),
        batch_(describe_views(views, dtype), stream_) {}

  void initialise() override {
    AWEX_CHECK(cuda::launch_adamw_initialise(dtype_, batch_.descriptors(), batch_.owners(),
                                             batch_.tiles(), stream_),
               "launch the start of the optimizer");
  }

  void step(const AdamWStep& step) override {
    AWEX_CHECK(cuda::launch_adamw_step(dtype_, batch_.descriptors(), batch_.owners(),
                                       batch_.tiles(), step, stream_),
               "launch an optimizer step");
  }

 private:
  DType dtype_;
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::AdamWDescriptor> batch_;
};

}  // namespace

std::unique_ptr<AdamW> make_cuda_adamw(Kernels& kernels, std::span<const AdamWView> views,
                                       DType dtype) {
  switch (dtype) {
    case DType::kBf16:
    case DType::kF16:
    case DType::kF32:
      return std::make_unique<CudaAdamW>(kernels, views, dtype);
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  throw untrainable(dtype);
}

}  // namespace awex
