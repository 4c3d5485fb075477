#include "transfer/tensor_digests.hpp"

#include "base/checked.hpp"
#include "model/digest.hpp"
#include "transfer/scale_grid.hpp"

namespace awex {
namespace {

/// How a shard's elements change until they are as inference holds the tensor.
std::optional<Conversion> conversion_of(const Shard& shard, DType stored, const TensorInfo& tensor,
                                        const std::byte* base) {
  if (stored == tensor.dtype) return std::nullopt;
  Conversion conversion{stored, tensor.dtype, {}};
  if (shard.scales) {
    const auto place = scale_place(*shard.scales, shard.box, shard.box, tensor.scaling->block);
    conversion.grid = scale_grid(place, base);
  }
  return conversion;
}

}  // namespace

std::vector<DigestView> shard_views(const Catalogue& catalogue, const RankLayout& layout,
                                    const std::byte* base) {
  const auto& tensors = catalogue.tensors();
  std::vector<uint64_t> keys;
  for (const auto& tensor : tensors) keys.push_back(tensor_key(tensor.name));
  std::vector<DigestView> views;
  for (const auto& shard : layout.shards) {
    const TensorInfo& tensor = tensors[shard.tensor];
    const DType stored = layout.parameters[shard.parameter].dtype;
    const uint64_t slot = shard.replica == 0 ? shard.tensor : tensors.size() + shard.tensor;
    views.push_back({.data = base + shard.offset_bytes,
                     .rows = shard.box.rows.size(),
                     .cols = shard.box.cols.size(),
                     .row_stride = shard.row_stride,
                     .first_index = shard.box.rows.begin * tensor.cols + shard.box.cols.begin,
                     .canonical_cols = tensor.cols,
                     .key = keys[shard.tensor],
                     .element_size = narrow<uint32_t>(element_bytes(stored)),
                     .slot = narrow<uint32_t>(slot),
                     .conversion = conversion_of(shard, stored, tensor, base)});
  }
  return views;
}

uint32_t digest_slots(const Catalogue& catalogue) {
  return narrow<uint32_t>(2 * catalogue.tensors().size());
}

DigestComparison compare_digests(const Catalogue& catalogue, RoleSums trainer,
                                 const std::vector<uint64_t>& trainer_copies, RoleSums inference,
                                 const std::vector<uint64_t>& inference_copies) {
  const auto& tensors = catalogue.tensors();
  DigestComparison result;
  for (uint32_t t = 0; t < tensors.size(); ++t) {
    const uint64_t truth = trainer[t];
    const uint64_t further = tensors.size() + t;
    if (inference[t] != truth || inference[further] != truth * (inference_copies[t] - 1)) {
      result.wrong_tensors.push_back(t);
    }
    if (trainer[further] != truth * (trainer_copies[t] - 1)) result.diverged_tensors.push_back(t);
    result.model += model_digest_term(tensor_key(tensors[t].name), inference[t]);
  }
  return result;
}

}  // namespace awex
