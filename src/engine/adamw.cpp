#include "engine/adamw.hpp"

#include <cmath>

#include "engine/adamw_backends.hpp"
#include "memory/device.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {
namespace {

float bias_correction(float beta, uint64_t step) {
  return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
}

}  // namespace

AdamWStep make_step(const AdamWSettings& settings, uint64_t step) {
  return {settings, bias_correction(settings.beta1, step), bias_correction(settings.beta2, step),
          mix64(step)};
}

std::unique_ptr<AdamW> make_adamw([[maybe_unused]] Device& device,
                                  [[maybe_unused]] Kernels& kernels,
                                  std::span<const AdamWView> views, DType dtype,
                                  ThreadPool& threads) {
#if AWEX_WITH_CUDA
  if (device.kind() == BackendKind::kCuda) return make_cuda_adamw(kernels, views, dtype);
#endif
  return make_host_adamw(views, dtype, threads);
}

}  // namespace awex
