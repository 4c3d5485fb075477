#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// vLLM, one or more instances (layouts.md section 5). Ranks run tp fastest, then pp, then dp
/// (distributed/parallel_state.py). Options:
///   tp, pp  tensor and pipeline parallel; a remainder of layers goes to the stages before the last
///   dp      data parallel ranks inside an instance: they share out the experts
///   ep      off: every expert is split over dp * tp; on: these ranks hold whole experts, the first
///           ranks one more when the experts do not divide
///   shared_experts  tp, or replicated (sequence parallel MoE); unless given as the engine has
///   them:
///           replicated for the DeepSeek kind with ep on and both dp and tp more than one, else tp
///   stored_head  on: the checkpoint that vLLM loads stores lm_head.weight though it is tied, which
///           is then its name on the last of several stages
///   version  of vLLM, "0.32": names depend on it; the newest known unless given
///   deep_gemm, moe_backend  for dtype=fp8: what the engine is told, so that it keeps what it
///   loaded
///           as it is: deep_gemm=off (VLLM_USE_DEEP_GEMM=0); moe_backend=triton where ep is on
///   dtype, router_dtype, block  what it holds weights in (held_catalogue.hpp)
/// Its notes say what must be done after an update of fp8 latent attention, and what vLLM's config
/// decides. Throws a request error when an option is unknown, the version is not known, the engine
/// would lay the weights out anew after loading, its class of the model does not take it as it is
/// (a stage without experts, a tied head), or the model or the ranks do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_vllm_layout(const EngineSpec& spec,
                                                       const Catalogue& catalogue, uint32_t ranks);

}  // namespace awex
