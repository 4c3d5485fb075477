#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// SGLang, one or more instances (layouts.md section 4). Ranks run tp fastest, then pp. Options:
///   tp, pp       tensor and pipeline parallel; a remainder of layers goes to the last stages
///   ep           expert parallel ranks among the tp; each expert is split over tp / ep
///   attn_dp      data parallel attention: attention is split over tp / attn_dp, but for Llama and
///                Qwen2, whose classes split it over tp all the same
///   embed        attn_tp (over tp / attn_dp), tp, or replicated, by version; tp unless given for
///                Llama, else attn_tp
///   dp_lm_head   off, or on: lm_head is split over tp / attn_dp instead of over tp, but for Qwen2
///   fuse_shared  off, or on: the shared expert is the last expert of every ep rank. Unless given
///                as the engine has it on an NVIDIA GPU: on without ep for GLM-4.5, and for
///                DeepSeek-V3 with 256 experts
///   dense_mlp    tp, or replicated (--moe-dense-tp-size 1, which DeepSeek and GLM-4.5 follow)
///   shared_experts  tp, or replicated (DeepEP)
///   keeps_fp8    with dtype=fp8: on, which says that the engine keeps what it loads as it is
///   dtype, router_dtype, block  what it holds weights in (held_catalogue.hpp)
/// What is said of classes was asked of SGLang 0.5.23 (scripts/test-sglang.sh). Throws a request
/// error when an option is unknown, when the engine cannot load the model or would lay its weights
/// out anew after loading, or the model or the ranks do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec,
                                                         const Catalogue& catalogue,
                                                         uint32_t ranks);

}  // namespace awex
