#pragma once

#include <memory>

#include "model/weights.hpp"

namespace awex {

/// Weights made up for a bf16 catalogue: norms in [0.96, 1.04), all else in [-0.05, 0.05). An
/// element's value depends on its tensor's name and its canonical index alone, so every rank of
/// every layout and every run sees the same model.
[[nodiscard]] std::unique_ptr<WeightSource> generate_weights(Catalogue catalogue);

}  // namespace awex
