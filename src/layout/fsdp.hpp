#pragma once

#include <memory>

#include "layout/layout.hpp"
#include "layout/spec.hpp"

namespace awex {

/// PyTorch FSDP2, Hugging Face names: every parameter is cut by rows over `shard` ranks, as
/// torch.chunk cuts (torch/distributed/fsdp/_fully_shard/_fsdp_param.py): all chunks but the last
/// ones have ceil(rows / shard) rows, the last ones may be shorter or empty. A parameter of which a
/// rank has no row is not in its layout. With tp=T, tensor parallel ranks first split projections
/// and vocabulary by rows (by columns where they are row-parallel: o_proj, down_proj), in chunks of
/// the same kind (DTensor's Shard), and FSDP cuts what is theirs. Only heads have to divide.
///
/// Options: tp (1), shard (all ranks that tp leaves), replicate (what is left of the ranks; it only
/// has to agree). Ranks run tp fastest, then shard, then replicate. Keeps a reference to the
/// catalogue. Throws a request error that names option and value when ranks or model do not divide.
[[nodiscard]] std::unique_ptr<Layout> make_fsdp_layout(const EngineSpec& spec,
                                                       const Catalogue& catalogue, uint32_t ranks);

}  // namespace awex
