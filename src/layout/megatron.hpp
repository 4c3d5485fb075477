#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// Megatron-core (layouts as of mid 2026): fused QKV interleaved by query group, fc1 as [gate; up]
/// per rank, each expert a parameter of its own, vocabulary padded.
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | tp | tensor parallel ranks | 1 |
/// | pp, first, last, account_for_embedding, account_for_loss, layout, vpp |
/// MegatronPipelineOptions | 1 stage | | cp | context parallel ranks, which hold the same weights |
/// 1 | | ep, etp | expert parallel ranks; tensor parallel ranks of an expert | 1; tp | | experts |
/// `grouped` or `sequential` names of experts | grouped | | spec | `te` or `local` modules: where
/// norms are and how MLA's down projections are split | te | | pad_vocab, pad_with_tp | the padded
/// vocabulary is a multiple of pad_vocab, times tp if `on` | 128, on |
///
/// What is left of the ranks is data parallel. Ranks run tp fastest, then cp, dp, pp; for experts
/// etp, ep, edp, pp (core/parallel_state.py).
///
/// Names are the engine's own: layers begin at 0 in every pipeline chunk. The first chunk of a rank
/// has the names as they are, chunk N >= 1 (of virtual pipeline stages) has "chunkN." before them.
/// With tied embeddings and several chunks, the last one holds a replica of the embedding as
/// output_layer.weight.
///
/// Keeps a reference to the catalogue. Throws a request error that names option and value when the
/// model or the ranks do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_megatron_layout(const EngineSpec& spec,
                                                           const Catalogue& catalogue,
                                                           uint32_t ranks);

}  // namespace awex
