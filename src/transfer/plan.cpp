#include "transfer/plan.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "base/checked.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

std::string describe(const Box& box) {
  return fmt::format("rows [{}, {}) x columns [{}, {})", box.rows.begin, box.rows.end,
                     box.cols.begin, box.cols.end);
}

/// A trainer's shard that may be a source.
struct Holder {
  uint32_t rank = 0;
  const Shard* shard = nullptr;
};

/// For each tensor, all trainer shards of it.
std::vector<std::vector<Holder>> holders_by_tensor(size_t tensors,
                                                   const std::vector<RankLayout>& trainers) {
  std::vector<std::vector<Holder>> holders(tensors);
  for (uint32_t rank = 0; rank < trainers.size(); ++rank) {
    for (const auto& shard : trainers[rank].shards) holders[shard.tensor].push_back({rank, &shard});
  }
  return holders;
}

/// Appends what is left of `box` without `hole`, a box inside it: at most four boxes.
void append_difference(const Box& box, const Box& hole, std::vector<Box>& out) {
  const std::array<Box, 4> around{Box{{box.rows.begin, hole.rows.begin}, box.cols},
                                  Box{{hole.rows.end, box.rows.end}, box.cols},
                                  Box{hole.rows, {box.cols.begin, hole.cols.begin}},
                                  Box{hole.rows, {hole.cols.end, box.cols.end}}};
  for (const auto& part : around) {
    if (!part.empty()) out.push_back(part);
  }
}

/// The box that `part`, a box inside `shard`'s, has in the rank's region: byte offset of its first
/// element.
uint64_t offset_of(const Shard& shard, const Box& part, uint64_t element) {
  const uint64_t rows = part.rows.begin - shard.box.rows.begin;
  const uint64_t cols = part.cols.begin - shard.box.cols.begin;
  return shard.offset_bytes + (rows * shard.row_stride + cols) * element;
}

/// Plans one inference shard after the other.
class Planner {
 public:
  Planner(const Catalogue& catalogue, const std::vector<RankLayout>& trainers,
          const Placement& placement)
      : catalogue_(catalogue),
        placement_(placement),
        holders_(holders_by_tensor(catalogue.tensors().size(), trainers)) {}

  void add(uint32_t target, const Shard& shard) {
    std::vector<Box> missing{shard.box};
    std::vector<Holder> sources = holders_[shard.tensor];
    order_by_preference(sources, target, shard);
    for (const auto& source : sources) {
      if (missing.empty()) return;
      take_from(source, target, shard, missing);
    }
    if (missing.empty()) return;
    throw runtime_error(fmt::format("no trainer holds {} of {}, which inference rank {} needs",
                                    describe(missing.front()),
                                    catalogue_.tensors()[shard.tensor].name, target));
  }

  [[nodiscard]] Plan finish() { return std::move(plan_); }

 private:
  /// 0: same device, 1: same node, 2: another node.
  [[nodiscard]] int distance(uint32_t source, uint32_t target) const {
    const uint32_t from = placement_.trainer_device[source];
    const uint32_t to = placement_.inference_device[target];
    if (from == to) return 0;
    return placement_.device_node[from] == placement_.device_node[to] ? 1 : 2;
  }

  /// Nearest first; among equally near replicas each (tensor, target) begins at another one, which
  /// spreads the load without any state that ranks would have to share.
  void order_by_preference(std::vector<Holder>& sources, uint32_t target,
                           const Shard& shard) const {
    uint32_t replicas = 1;
    for (const auto& source : sources) replicas = std::max(replicas, source.shard->replica + 1);
    const auto turn =
        static_cast<uint32_t>(mix64(shard.tensor + (uint64_t{target} << 32)) % replicas);
    std::stable_sort(sources.begin(), sources.end(), [&](const Holder& a, const Holder& b) {
      const auto rank_of = [&](const Holder& holder) {
        return std::pair(distance(holder.rank, target), (holder.shard->replica + turn) % replicas);
      };
      return rank_of(a) < rank_of(b);
    });
  }

  void take_from(const Holder& source, uint32_t target, const Shard& shard,
                 std::vector<Box>& missing) {
    std::vector<Box> still_missing;
    for (const auto& box : missing) {
      const Box part = intersect(box, source.shard->box);
      if (part.empty()) {
        still_missing.push_back(box);
        continue;
      }
      add_piece(source, target, shard, part);
      append_difference(box, part, still_missing);
    }
    missing = std::move(still_missing);
  }

  void add_piece(const Holder& source, uint32_t target, const Shard& shard, const Box& part) {
    const uint64_t element = element_bytes(catalogue_.tensors()[shard.tensor].dtype);
    const Piece piece{.source = source.rank,
                      .target = target,
                      .tensor = shard.tensor,
                      .box = part,
                      .row_bytes = part.cols.size() * element,
                      .source_offset = offset_of(*source.shard, part, element),
                      .source_stride = source.shard->row_stride * element,
                      .target_offset = offset_of(shard, part, element),
                      .target_stride = shard.row_stride * element};
    (distance(source.rank, target) == 0 ? plan_.local_bytes : plan_.remote_bytes) += piece.bytes();
    plan_.pieces.push_back(piece);
  }

  const Catalogue& catalogue_;
  const Placement& placement_;
  std::vector<std::vector<Holder>> holders_;
  Plan plan_;
};

/// A rank's shards, found by tensor.
class ShardsByTensor {
 public:
  ShardsByTensor(size_t tensors, const RankLayout& rank) : by_tensor_(tensors) {
    for (const auto& shard : rank.shards) by_tensor_[shard.tensor].push_back(&shard);
  }

  [[nodiscard]] const std::vector<const Shard*>& of(uint32_t tensor) const {
    return by_tensor_[tensor];
  }

 private:
  std::vector<std::vector<const Shard*>> by_tensor_;
};

std::vector<ShardsByTensor> index_shards(const Catalogue& catalogue,
                                         const std::vector<RankLayout>& ranks) {
  std::vector<ShardsByTensor> indices;
  for (const auto& rank : ranks) indices.emplace_back(catalogue.tensors().size(), rank);
  return indices;
}

/// Bytes of one inference rank's shards that the trainer on its device does not hold. The trainer's
/// own shards never overlap.
uint64_t missing_bytes(const Catalogue& catalogue, const RankLayout& target,
                       const ShardsByTensor& local) {
  uint64_t bytes = 0;
  for (const auto& shard : target.shards) {
    uint64_t missing = shard.box.elements();
    for (const Shard* held : local.of(shard.tensor)) {
      missing -= intersect(shard.box, held->box).elements();
    }
    bytes += missing * element_bytes(catalogue.tensors()[shard.tensor].dtype);
  }
  return bytes;
}

uint64_t remote_lower_bound(const Catalogue& catalogue, const std::vector<RankLayout>& trainers,
                            const std::vector<RankLayout>& inference, const Placement& placement) {
  std::vector<const RankLayout*> trainer_of(placement.device_node.size(), nullptr);
  for (uint32_t rank = 0; rank < trainers.size(); ++rank) {
    trainer_of[placement.trainer_device[rank]] = &trainers[rank];
  }
  const RankLayout nothing;
  uint64_t bytes = 0;
  for (uint32_t target = 0; target < inference.size(); ++target) {
    const RankLayout* local = trainer_of[placement.inference_device[target]];
    bytes += missing_bytes(catalogue, inference[target],
                           {catalogue.tensors().size(), local == nullptr ? nothing : *local});
  }
  return bytes;
}

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

using PiecesByShard = std::map<const Shard*, std::vector<const Piece*>>;

/// Sorts pieces by the target shard they lie in, checking both of their ends on the way.
PiecesByShard check_ends(const Plan& plan, const Catalogue& catalogue,
                         const std::vector<ShardsByTensor>& trainers,
                         const std::vector<ShardsByTensor>& inference) {
  PiecesByShard by_shard;
  for (const auto& piece : plan.pieces) {
    if (piece.tensor >= catalogue.tensors().size() || piece.source >= trainers.size() ||
        piece.target >= inference.size()) {
      throw runtime_error(
          fmt::format("the plan is wrong: it moves tensor {} from trainer rank {} "
                      "to inference rank {}, which do not all exist",
                      piece.tensor, piece.source, piece.target));
    }
    const uint64_t element = element_bytes(catalogue.tensors()[piece.tensor].dtype);
    if (piece.row_bytes != piece.box.cols.size() * element) {
      refuse(piece, catalogue, "has rows of another length");
    }
    if (shard_around(piece, trainers[piece.source], piece.source_offset, piece.source_stride,
                     element) == nullptr) {
      refuse(piece, catalogue, "is not what its source holds there");
    }
    const Shard* target = shard_around(piece, inference[piece.target], piece.target_offset,
                                       piece.target_stride, element);
    if (target == nullptr) refuse(piece, catalogue, "is not what its target holds there");
    by_shard[target].push_back(&piece);
  }
  return by_shard;
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

}  // namespace

std::vector<RankLayout> all_rank_layouts(const Layout& layout) {
  std::vector<RankLayout> ranks;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) ranks.push_back(layout.rank_layout(rank));
  return ranks;
}

std::vector<uint64_t> copies_of_tensors(const Catalogue& catalogue,
                                        const std::vector<RankLayout>& ranks) {
  std::vector<uint64_t> copies(catalogue.tensors().size(), 0);
  for (const auto& rank : ranks) {
    for (const auto& shard : rank.shards) {
      copies[shard.tensor] = std::max<uint64_t>(copies[shard.tensor], shard.replica + 1);
    }
  }
  return copies;
}

Plan make_plan(const Catalogue& catalogue, const std::vector<RankLayout>& trainers,
               const std::vector<RankLayout>& inference, const Placement& placement) {
  Planner planner(catalogue, trainers, placement);
  for (uint32_t target = 0; target < inference.size(); ++target) {
    for (const auto& shard : inference[target].shards) planner.add(target, shard);
  }
  Plan plan = planner.finish();
  plan.remote_bytes_lower_bound = remote_lower_bound(catalogue, trainers, inference, placement);
  return plan;
}

void prove_plan(const Plan& plan, const Catalogue& catalogue,
                const std::vector<RankLayout>& trainers, const std::vector<RankLayout>& inference) {
  const auto by_shard = check_ends(plan, catalogue, index_shards(catalogue, trainers),
                                   index_shards(catalogue, inference));
  const std::vector<const Piece*> none;
  for (uint32_t rank = 0; rank < inference.size(); ++rank) {
    for (const auto& shard : inference[rank].shards) {
      const auto found = by_shard.find(&shard);
      check_cover(shard, rank, found == by_shard.end() ? none : found->second, catalogue);
    }
  }
}

}  // namespace awex
