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

cuda::AdamWPiece describe_view(const AdamWView& original, uint64_t element_size) {
  const auto view = cuda::collapse(original);
  cuda::AdamWPiece piece;
  piece.weights = view.weights;
  piece.master = view.master;
  piece.exp_avg = view.exp_avg;
  piece.exp_avg_sq = view.exp_avg_sq;
  piece.row_stride = view.row_stride;
  piece.first_index = view.first_index;
  piece.canonical_cols = view.canonical_cols;
  piece.key = view.key;
  piece.fours = can_load_fours(view, element_size);
  piece.grid.row_units = piece.fours ? view.cols / 4 : view.cols;
  piece.grid.units = view.rows * piece.grid.row_units;
  return piece;
}

std::vector<cuda::AdamWPiece> describe_views(std::span<const AdamWView> views, DType dtype) {
  std::vector<cuda::AdamWPiece> pieces;
  pieces.reserve(views.size());
  for (const auto& view : views) pieces.push_back(describe_view(view, element_bytes(dtype)));
  return pieces;
}

class CudaAdamW final : public AdamW {
 public:
  CudaAdamW(Kernels& kernels, std::span<const AdamWView> views, DType dtype)
      : dtype_(dtype),
        stream_(static_cast<cudaStream_t>(kernels.stream(Stream::kMain))),
        batch_(describe_views(views, dtype), stream_) {}

  void initialise() override {
    AWEX_CHECK(cuda::launch_adamw_initialise(dtype_, batch_.pieces(), batch_.owners(),
                                             batch_.tiles(), stream_),
               "launch the start of the optimizer");
  }

  void step(const AdamWStep& step) override {
    AWEX_CHECK(cuda::launch_adamw_step(dtype_, batch_.pieces(), batch_.owners(), batch_.tiles(),
                                       step, stream_),
               "launch an optimizer step");
  }

 private:
  DType dtype_;
  cudaStream_t stream_;
  cuda::TiledBatch<cuda::AdamWPiece> batch_;
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
