#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// SGLang, one or more instances (layouts.md section 4). Ranks run tp fastest, then pp. Options:
///   tp, pp       tensor and pipeline parallel; a remainder of layers goes to the last stages
///   ep           expert parallel ranks among the tp; each expert is split over tp / ep
///   attn_dp      data parallel attention: attention is split over tp / attn_dp
///   embed        attn_tp (split as attention is), tp, or replicated, by version; tp unless given
///                for Llama, else attn_tp
///   dp_lm_head   off, or on: lm_head is split as attention is instead of over tp
///   fuse_shared  off, or on: the shared expert is the last expert of every ep rank. Unless given
///                as the engine has it on an NVIDIA GPU: on without ep for GLM-4.5, and for
///                DeepSeek-V3 with 256 experts
///   dense_mlp    tp, or replicated (--moe-dense-tp-size 1)
///   shared_experts  tp, or replicated (DeepEP)
///   keeps_fp8    with dtype=fp8: on, which says that the engine keeps what it loads as it is
///   dtype, router_dtype, block  what it holds weights in (held_catalogue.hpp)
/// Names are the same from 0.5.2 to 0.5.23. Throws a request error when an option is unknown, when
/// the engine cannot load the model or would lay its weights out anew after loading, or the model
/// or the ranks do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec,
                                                         const Catalogue& catalogue,
                                                         uint32_t ranks);

}  // namespace awex
