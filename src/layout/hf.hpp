#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// Every rank holds the whole model under its Hugging Face names and shapes.
[[nodiscard]] std::unique_ptr<Layout> make_hf_layout(const EngineSpec& spec,
                                                     const Catalogue& catalogue, uint32_t ranks);

}  // namespace awex
