#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// A trainer of which every rank holds the whole model under its Hugging Face names and shapes.
/// Throws a request error for any option.
[[nodiscard]] std::unique_ptr<Layout> make_hf_layout(const EngineSpec& spec,
                                                     const Catalogue& catalogue, uint32_t ranks);

/// The same of inference. Options: dtype, block (held_catalogue.hpp).
[[nodiscard]] std::unique_ptr<Layout> make_hf_inference_layout(const EngineSpec& spec,
                                                               const Catalogue& catalogue,
                                                               uint32_t ranks);

}  // namespace awex
