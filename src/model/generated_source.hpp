#pragma once

#include <memory>

#include "model/weights.hpp"

namespace awex {

/// Weights made up for a catalogue of 16-bit and 32-bit dtypes: norms in [0.96, 1.04), all else in
/// [-0.05, 0.05). An element's value depends on its tensor's name and its canonical index alone (in
/// a 16-bit dtype it is the fp32 value, rounded), so every rank of every layout and every run sees
/// the same model. Throws a run-time error that names a tensor of another dtype.
[[nodiscard]] std::unique_ptr<WeightSource> generate_weights(Catalogue catalogue);

}  // namespace awex
