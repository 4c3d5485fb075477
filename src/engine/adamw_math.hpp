#pragma once

#include "engine/adamw.hpp"

/// One element of an AdamW step (Loshchilov and Hutter 2019, algorithm 2), in pieces that the host
/// and the cuda kernels share. Each operation must round once to fp32, so that both give the same
/// bits: files that include this are compiled without contraction (-ffp-contract=off, -fmad=false).
/// The square root between the pieces is the caller's, because none is constexpr:
///
///   update_moments(step, gradient, element);
///   update_master(step, std::sqrt(unbiased_variance(step, element)), element);

namespace awex {

/// The fp32 state of one element.
struct AdamWElement {
  float master = 0;
  float exp_avg = 0;
  float exp_avg_sq = 0;
};

/// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) (g g).
constexpr void update_moments(const AdamWStep& step, float gradient, AdamWElement& element) {
  const float beta1 = step.settings.beta1;
  const float beta2 = step.settings.beta2;
  element.exp_avg = beta1 * element.exp_avg + (1.0F - beta1) * gradient;
  element.exp_avg_sq = beta2 * element.exp_avg_sq + (1.0F - beta2) * (gradient * gradient);
}

/// v / (1 - b2^t), whose root update_master wants.
[[nodiscard]] constexpr float unbiased_variance(const AdamWStep& step,
                                                const AdamWElement& element) {
  return element.exp_avg_sq / step.bias_correction2;
}

/// p = p - lr (mhat / (root + eps) + wd p), with mhat = m / (1 - b1^t).
constexpr void update_master(const AdamWStep& step, float root, AdamWElement& element) {
  const auto& settings = step.settings;
  const float direction = (element.exp_avg / step.bias_correction1) / (root + settings.epsilon);
  const float decay = settings.weight_decay * element.master;
  element.master = element.master - settings.learning_rate * (direction + decay);
}

}  // namespace awex
