#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "engine/adamw.hpp"

namespace awex {

/// AdamW on host memory, done on return of each call. `dtype` is one that can be trained.
[[nodiscard]] std::unique_ptr<AdamW> make_host_adamw(std::span<const AdamWView> views, DType dtype,
                                                     size_t threads);

/// AdamW queued on the kernels' CUDA stream. `dtype` is one that can be trained.
[[nodiscard]] std::unique_ptr<AdamW> make_cuda_adamw(Kernels& kernels,
                                                     std::span<const AdamWView> views, DType dtype);

}  // namespace awex
