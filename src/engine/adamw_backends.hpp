#pragma once

#include <memory>
#include <span>

#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "engine/adamw.hpp"

namespace awex {

/// The error of make_adamw for a dtype that cannot be trained.
[[nodiscard]] inline Error untrainable(DType dtype) {
  return request_error(
      fmt::format("cannot train weights of dtype {} with adamw", dtype_name(dtype)),
      "train a BF16, F16 or F32 model, or run with --optimizer none");
}

/// AdamW on host memory by `threads`, which must outlive it; done on return of each call. Throws
/// `untrainable`.
[[nodiscard]] std::unique_ptr<AdamW> make_host_adamw(std::span<const AdamWView> views, DType dtype,
                                                     ThreadPool& threads);

/// AdamW queued on the kernels' CUDA stream. Throws `untrainable`.
[[nodiscard]] std::unique_ptr<AdamW> make_cuda_adamw(Kernels& kernels,
                                                     std::span<const AdamWView> views, DType dtype);

}  // namespace awex
