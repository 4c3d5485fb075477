#include "transfer/prove/tensor_digests.hpp"

#include <map>
#include <utility>

#include "base/checked.hpp"
#include "model/digest.hpp"
#include "transfer/kernels/scale_grid.hpp"

namespace awex {
namespace {

/// How the elements of a block of a shard change until they are as inference holds the tensor.
std::optional<Conversion> conversion_of(const Shard& shard, const RowBlock& block, DType stored,
                                        const TensorInfo& tensor, const PlacedMemory& memory) {
  if (stored == tensor.dtype) return std::nullopt;
  Conversion conversion{stored, tensor.dtype, {}};
  if (shard.scales) {
    const auto place = scale_place(*shard.scales, shard.box, shard.box, tensor.scaling->block);
    conversion.grid = scale_grid(place.moved(block.row, block.col), block.rows, block.cols, memory);
  }
  return conversion;
}

/// Numbers the replicas that a rank holds, in the order of their first shards.
class ReplicaNumbers {
 public:
  size_t of(const Shard& shard) {
    return numbers_.try_emplace({shard.tensor, shard.replica}, numbers_.size()).first->second;
  }

 private:
  std::map<std::pair<uint32_t, uint32_t>, size_t> numbers_;
};

/// A sum over boxes, so that their order does not matter.
uint64_t box_term(const Box& box) {
  uint64_t hash = 0;
  for (const uint64_t bound : {box.rows.begin, box.rows.end, box.cols.begin, box.cols.end}) {
    hash = mix64(hash + bound + 1);
  }
  return hash;
}

/// replica_key of the replicas 1 to `replicas` - 1, added up: a tensor's further replicas add up to
/// this many times its first, if they are equal.
class FurtherKeys {
 public:
  uint64_t operator()(uint64_t replicas) {
    while (sums_.size() < replicas) {
      sums_.push_back(sums_.back() + replica_key(narrow<uint32_t>(sums_.size())));
    }
    return sums_[replicas - 1];
  }

 private:
  std::vector<uint64_t> sums_{0};
};

}  // namespace

std::vector<HeldReplica> held_replicas(const RankLayout& layout) {
  std::vector<HeldReplica> replicas;
  ReplicaNumbers numbers;
  for (const auto& shard : layout.shards) {
    const size_t number = numbers.of(shard);
    if (number == replicas.size()) replicas.push_back({shard.tensor, shard.replica, 0});
    replicas[number].boxes += box_term(shard.box);
  }
  return replicas;
}

std::vector<DigestView> shard_views(const Catalogue& catalogue, const RankLayout& layout,
                                    const PlacedMemory& memory) {
  const auto& tensors = catalogue.tensors();
  std::vector<uint64_t> keys;
  for (const auto& tensor : tensors) keys.push_back(tensor_key(tensor.name));
  ReplicaNumbers numbers;
  std::vector<DigestView> views;
  for (const auto& shard : layout.shards) {
    const TensorInfo& tensor = tensors[shard.tensor];
    const DType stored = layout.parameters[shard.parameter].dtype;
    const uint64_t element = element_bytes(stored);
    const auto sum = narrow<uint32_t>(numbers.of(shard));
    const PlacedRows rows{&memory, shard.offset_bytes, shard.row_stride * element, element};
    for (const auto& block : cut_rows(shard.box.rows.size(), shard.box.cols.size(), {&rows, 1})) {
      views.push_back({.data = address_of(block, rows),
                       .rows = block.rows,
                       .cols = block.cols,
                       .row_stride = shard.row_stride,
                       .first_index = (shard.box.rows.begin + block.row) * tensor.cols +
                                      shard.box.cols.begin + block.col,
                       .canonical_cols = tensor.cols,
                       .key = keys[shard.tensor],
                       .element_size = narrow<uint32_t>(element),
                       .sum = sum,
                       .conversion = conversion_of(shard, block, stored, tensor, memory)});
    }
  }
  return views;
}

uint64_t replica_key(uint32_t replica) { return group_key(0, replica); }

std::vector<uint64_t> rank_terms(size_t tensors, std::span<const HeldReplica> replicas,
                                 std::span<const uint64_t> sums) {
  std::vector<uint64_t> terms(2 * tensors, 0);
  for (size_t i = 0; i < replicas.size(); ++i) {
    const auto& [tensor, replica, boxes] = replicas[i];
    if (replica == 0) {
      terms[tensor] += sums[i];
    } else {
      terms[tensors + tensor] += replica_key(replica) * sums[i];
    }
  }
  return terms;
}

DigestComparison compare_digests(const Catalogue& catalogue, RoleSums trainer,
                                 const std::vector<uint64_t>& trainer_replicas, RoleSums inference,
                                 const std::vector<uint64_t>& inference_replicas) {
  const auto& tensors = catalogue.tensors();
  FurtherKeys further_keys;
  DigestComparison result;
  for (uint32_t t = 0; t < tensors.size(); ++t) {
    const uint64_t truth = trainer[t];
    const uint64_t further = tensors.size() + t;
    if (inference[t] != truth ||
        inference[further] != truth * further_keys(inference_replicas[t])) {
      result.wrong_tensors.push_back(t);
    }
    if (trainer[further] != truth * further_keys(trainer_replicas[t])) {
      result.diverged_tensors.push_back(t);
    }
    result.model += model_digest_term(tensor_key(tensors[t].name), inference[t]);
  }
  return result;
}

}  // namespace awex
