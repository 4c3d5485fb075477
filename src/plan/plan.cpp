#include "plan/plan.hpp"

#include <algorithm>
#include <map>
#include <span>

#include "base/checked.hpp"

namespace awex {
namespace {

std::string describe(const Box& box) {
  return fmt::format("rows [{}, {}) x columns [{}, {})", box.rows.begin, box.rows.end,
                     box.cols.begin, box.cols.end);
}

/// Where the first element of `part`, a box inside `shard`'s, lies in the rank's region.
uint64_t offset_of(const Shard& shard, const Box& part, uint64_t element) {
  const uint64_t rows = part.rows.begin - shard.box.rows.begin;
  const uint64_t cols = part.cols.begin - shard.box.cols.begin;
  return shard.offset_bytes + (rows * shard.row_stride + cols) * element;
}

/// A rank's shards, found by tensor.
class ShardsByTensor {
 public:
  explicit ShardsByTensor(const RankLayout& rank) {
    for (const auto& shard : rank.shards) shards_.push_back(&shard);
    std::stable_sort(shards_.begin(), shards_.end(),
                     [](const auto* a, const auto* b) { return a->tensor < b->tensor; });
  }

  [[nodiscard]] std::span<const Shard* const> of(uint32_t tensor) const {
    const auto [begin, end] = std::equal_range(shards_.begin(), shards_.end(), tensor, Before{});
    return {begin, end};
  }

 private:
  struct Before {
    bool operator()(const Shard* shard, uint32_t tensor) const { return shard->tensor < tensor; }
    bool operator()(uint32_t tensor, const Shard* shard) const { return tensor < shard->tensor; }
  };

  std::vector<const Shard*> shards_;
};

/// Shards of ranks by rank number; ranks without an entry do not matter to the proof.
using RankShards = std::map<uint32_t, ShardsByTensor>;

[[noreturn]] void refuse(const Piece& piece, const Catalogue& catalogue, const char* what) {
  throw runtime_error(fmt::format("the plan is wrong: the piece {} of {} from trainer rank {} to "
                                  "inference rank {} {}",
                                  describe(piece.box), catalogue.tensors()[piece.tensor].name,
                                  piece.source, piece.target, what),
                      "this is a bug in the planner: please report it with the command line");
}

/// The shard in which a piece, seen from one of its ends, lies at the given place; null if none.
const Shard* shard_around(const Piece& piece, const ShardsByTensor& rank, uint64_t offset,
                          uint64_t stride, uint64_t element) {
  for (const Shard* shard : rank.of(piece.tensor)) {
    if (!piece.box.empty() && intersect(shard->box, piece.box) == piece.box &&
        offset_of(*shard, piece.box, element) == offset && shard->row_stride * element == stride) {
      return shard;
    }
  }
  return nullptr;
}

/// A quantised piece finds the scale of its first element's block where its source keeps it, and so
/// those of all others: the rest follows from the strides.
void check_scales(const Piece& piece, const Shard& source, const Catalogue& catalogue) {
  const auto& scaling = catalogue.tensors()[piece.tensor].scaling;
  if (!scaling && !piece.scales) return;
  if (!scaling || !piece.scales || !source.scales) {
    refuse(piece, catalogue, "has scales where it needs none, or none where it needs them");
  }
  const uint64_t block = scaling->block;
  const auto blocks_before = [block](uint64_t from, uint64_t to) {
    return to / block - from / block;
  };
  const uint64_t rows = blocks_before(source.box.rows.begin, piece.box.rows.begin);
  const uint64_t cols = blocks_before(source.box.cols.begin, piece.box.cols.begin);
  const uint64_t wanted =
      source.scales->offset_bytes + (rows * source.scales->row_stride + cols) * sizeof(float);
  const ScalePlace& place = *piece.scales;
  if (place.block != block || place.offset_bytes != wanted ||
      place.row_stride != source.scales->row_stride ||
      place.row_in_block != piece.box.rows.begin % block ||
      place.col_in_block != piece.box.cols.begin % block) {
    refuse(piece, catalogue, "is scaled by other blocks than its source keeps");
  }
}

using PiecesByShard = std::map<const Shard*, std::vector<const Piece*>>;

/// Checks both ends of a piece and returns the target shard that it lies in.
const Shard* check_ends(const Piece& piece, const Catalogue& catalogue, const RankShards& trainers,
                        const RankShards& inference) {
  const auto source = trainers.find(piece.source);
  const auto target = inference.find(piece.target);
  if (piece.tensor >= catalogue.tensors().size() || source == trainers.end() ||
      target == inference.end()) {
    throw runtime_error(
        fmt::format("the plan is wrong: it moves tensor {} from trainer rank {} "
                    "to inference rank {}, which do not all exist",
                    piece.tensor, piece.source, piece.target));
  }
  const TensorInfo& info = catalogue.tensors()[piece.tensor];
  if (piece.from != info.source_dtype() || piece.to != info.dtype) {
    refuse(piece, catalogue, "has other dtypes than its ends");
  }
  if (piece.row_bytes != piece.box.cols.size() * element_bytes(piece.to)) {
    refuse(piece, catalogue, "has rows of another length");
  }
  const Shard* held = shard_around(piece, source->second, piece.source_offset, piece.source_stride,
                                   element_bytes(piece.from));
  if (held == nullptr) refuse(piece, catalogue, "is not what its source holds there");
  check_scales(piece, *held, catalogue);
  const Shard* around = shard_around(piece, target->second, piece.target_offset,
                                     piece.target_stride, element_bytes(piece.to));
  if (around == nullptr) refuse(piece, catalogue, "is not what its target holds there");
  return around;
}

/// Disjoint boxes inside a shard that add up to its size cover it.
void check_cover(const Shard& shard, uint32_t rank, const std::vector<const Piece*>& pieces,
                 const Catalogue& catalogue) {
  uint64_t covered = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    covered += pieces[i]->box.elements();
    for (size_t j = 0; j < i; ++j) {
      if (intersect(pieces[i]->box, pieces[j]->box).empty()) continue;
      refuse(*pieces[i], catalogue, "overlaps another piece");
    }
  }
  if (covered == shard.box.elements()) return;
  throw runtime_error(
      fmt::format("the plan is wrong: {} of {} elements of {} on inference rank {} "
                  "are filled",
                  covered, shard.box.elements(), catalogue.tensors()[shard.tensor].name, rank));
}

/// Every shard of an inference rank is filled.
void check_rank(uint32_t rank, const RankLayout& layout, const PiecesByShard& by_shard,
                const Catalogue& catalogue) {
  const std::vector<const Piece*> none;
  for (const auto& shard : layout.shards) {
    const auto found = by_shard.find(&shard);
    check_cover(shard, rank, found == by_shard.end() ? none : found->second, catalogue);
  }
}

}  // namespace

std::vector<uint32_t> rank_on_devices(const std::vector<uint32_t>& device_of, size_t devices) {
  std::vector<uint32_t> rank_on(devices, kNobody);
  for (uint32_t rank = 0; rank < device_of.size(); ++rank) rank_on[device_of[rank]] = rank;
  return rank_on;
}

std::string describe_choice(const Piece& piece) {
  const auto one_of = [&](const char* where) {
    return piece.choices == 1 ? fmt::format("the only source {}", where)
                              : fmt::format("one of {} sources {}", piece.choices, where);
  };
  switch (piece.near) {
    case Near::kDevice:
      return "on the same GPU";
    case Near::kNode:
      return one_of("on the node");
    case Near::kCluster:
      return one_of("in the cluster");
  }
  return {};
}

void prove_received(const Plan& plan, const Catalogue& catalogue, const Layout& trainer,
                    const Layout& inference, uint32_t target) {
  const RankLayout wanted = inference.rank_layout(target);
  const RankShards target_shards{{target, ShardsByTensor(wanted)}};
  std::map<uint32_t, RankLayout> sources;
  RankShards source_shards;
  PiecesByShard by_shard;
  for (const auto& piece : plan.pieces) {
    if (piece.target != target) continue;
    if (piece.source < trainer.ranks() && sources.count(piece.source) == 0) {
      const auto& layout = sources[piece.source] = trainer.rank_layout(piece.source);
      source_shards.emplace(piece.source, layout);
    }
    by_shard[check_ends(piece, catalogue, source_shards, target_shards)].push_back(&piece);
  }
  check_rank(target, wanted, by_shard, catalogue);
}

}  // namespace awex
