#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// The layout of a trainer ("megatron:tp=2", "hf") over `ranks` ranks; what the spec leaves of the
/// ranks is data parallel. Keeps a reference to the catalogue. Throws a request error when the
/// engine or an option is unknown, or the model or the ranks do not divide. With 0 `ranks` only
/// what any number of ranks has in common is checked, and the layout is of no use.
[[nodiscard]] std::unique_ptr<Layout> make_trainer_layout(const EngineSpec& spec,
                                                          const Catalogue& catalogue,
                                                          uint32_t ranks);

/// The same for an inference engine ("sglang:tp=2", "hf"); what the spec leaves of the ranks are
/// further instances of the engine. `catalogue` is what the engine holds: held_catalogue of the
/// same spec.
[[nodiscard]] std::unique_ptr<Layout> make_inference_layout(const EngineSpec& spec,
                                                            const Catalogue& catalogue,
                                                            uint32_t ranks);

}  // namespace awex
