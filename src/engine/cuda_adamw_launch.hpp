#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/adamw.hpp"
#include "transfer/kernels/cuda_tiles.hpp"

/// The launches behind make_cuda_adamw, in terms that nvcc and the host compiler share. All queue
/// on `stream` and return the launch's result, cudaErrorInvalidValue for a dtype that is not
/// trained.

namespace awex::cuda {

/// An AdamWView as the device reads it. A unit is four neighbouring elements, or one.
struct AdamWDescriptor {
  std::byte* weights = nullptr;
  float* master = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  uint64_t row_stride = 0;  ///< Elements.
  UnitGrid grid;
  uint64_t first_index = 0;
  uint64_t canonical_cols = 0;
  uint64_t key = 0;
  bool fours = false;  ///< Units are four elements, aligned for one load from each array.
};

cudaError_t launch_adamw_initialise(DType dtype, const AdamWDescriptor* descriptors,
                                    const uint32_t* owners, uint32_t tiles, cudaStream_t stream);

cudaError_t launch_adamw_step(DType dtype, const AdamWDescriptor* descriptors,
                              const uint32_t* owners, uint32_t tiles, const AdamWStep& step,
                              cudaStream_t stream);

}  // namespace awex::cuda
