#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/thread_pool.hpp"
#include "model/digest.hpp"
#include "model/dtype.hpp"

namespace awex {

// Declared only: cuda kernels include this header, and nvcc cannot compile fmt.
class Device;
class Kernels;

/// A box of a canonical tensor in a trainer's memory with its optimizer state. All four arrays have
/// the same rows, cols and row stride (in elements); they are device addresses.
struct AdamWView {
  std::byte* weights = nullptr;  ///< Elements of the optimizer's dtype (bf16, f16 or f32).
  float* master = nullptr;       ///< fp32 master weights.
  float* exp_avg = nullptr;      ///< First moment.
  float* exp_avg_sq = nullptr;   ///< Second moment.
  uint64_t rows = 0;
  uint64_t cols = 0;
  uint64_t row_stride = 0;
  uint64_t first_index = 0;     ///< Canonical index of the first element.
  uint64_t canonical_cols = 0;  ///< Canonical index step from row to row.
  uint64_t key = 0;             ///< tensor_key of the tensor.
};

struct AdamWSettings {
  float learning_rate = 1e-3F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  float weight_decay = 0.01F;
};

/// What a step needs besides its element: settings and 1 - beta^step, computed once on the host.
struct AdamWStep {
  AdamWSettings settings;
  float bias_correction1 = 1;
  float bias_correction2 = 1;
  uint64_t gradient_seed = 0;  ///< mix64 of the step number.
};

[[nodiscard]] AdamWStep make_step(const AdamWSettings& settings, uint64_t step);

/// The stand-in's gradient of a canonical element: uniform in [-1, 1) in steps of 2^-23. It depends
/// on tensor, element and step alone, so that every trainer layout takes the same steps.
[[nodiscard]] constexpr float generated_gradient(uint64_t gradient_seed, uint64_t key,
                                                 uint64_t index) {
  const uint64_t hash = mix64((key ^ gradient_seed) + index * 0x9e3779b97f4a7c15U);
  return static_cast<float>(static_cast<int32_t>(hash >> 40) - (1 << 23)) * 0x1p-23F;
}

/// Decoupled weight decay Adam (Loshchilov and Hutter 2019, algorithm 2) over a fixed set of views.
/// Every operation rounds once, in the order written in adamw_math.hpp, without fused
/// multiply-adds: cuda and host give the same bits.
class AdamW {
 public:
  AdamW() = default;
  AdamW(const AdamW&) = delete;
  AdamW& operator=(const AdamW&) = delete;
  AdamW(AdamW&&) = delete;
  AdamW& operator=(AdamW&&) = delete;
  virtual ~AdamW() = default;

  /// Queues master = weights, moments = 0 on the kernels' stream. On the host backend it is done
  /// when this returns, and counts the bytes of master and moments as done meanwhile
  /// (base/work_progress.hpp).
  virtual void initialise() = 0;
  /// Queues one step on the kernels' stream: moments, master, then weights = round(master).
  virtual void step(const AdamWStep& step) = 0;
};

/// Throws a request error for dtypes that cannot be trained (fp8). `kernels` must outlive it, and
/// so must `threads`, which work on the host backend.
[[nodiscard]] std::unique_ptr<AdamW> make_adamw(Device& device, Kernels& kernels,
                                                std::span<const AdamWView> views, DType dtype,
                                                ThreadPool& threads);

}  // namespace awex
