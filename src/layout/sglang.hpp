#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// SGLang, tensor parallel, one or more instances (layouts.md section 4): fused qkv_proj and
/// gate_up_proj, experts stacked in w13_weight and w2_weight, KV heads replicated when tp exceeds
/// them, vocabulary padded to a multiple of 64. Ranks run tp fastest.
[[nodiscard]] std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec,
                                                         const Catalogue& catalogue,
                                                         uint32_t ranks);

}  // namespace awex
