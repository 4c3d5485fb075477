#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// Megatron-core with the Transformer Engine spec, tensor parallel and data parallel (layouts.md
/// section 2): fused QKV interleaved by query group, fc1 as [gate; up] per rank, experts of a
/// grouped MLP one parameter each, vocabulary padded to a multiple of 128 * tp. Ranks run tp
/// fastest.
[[nodiscard]] std::unique_ptr<Layout> make_megatron_layout(const EngineSpec& spec,
                                                           const Catalogue& catalogue,
                                                           uint32_t ranks);

}  // namespace awex
