#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// SGLang, one or more instances (layouts.md section 4). Ranks run tp fastest, then pp. Options:
///   tp, pp       tensor and pipeline parallel; a remainder of layers goes to the last stages
///   ep           expert parallel ranks among the tp; each expert is split over tp / ep
///   attn_dp      data parallel attention: attention is split over tp / attn_dp
///   embed        attn_tp (split as attention is), tp, or replicated (models/qwen3_moe.py and
///                models/deepseek_v2.py, by version)
///   dp_lm_head   off, or on: lm_head is split as attention is instead of over tp
///   fuse_shared  off, or on: the shared expert is the last expert of every ep rank
///   dense_mlp    tp, or replicated (--moe-dense-tp-size 1)
///   shared_experts  tp, or replicated (DeepEP)
///   dtype, router_dtype, block  what it holds weights in (held_catalogue.hpp)
/// Throws a request error when an option is unknown, or the model or the ranks do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec,
                                                         const Catalogue& catalogue,
                                                         uint32_t ranks);

}  // namespace awex
