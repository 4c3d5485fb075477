#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "plan/plan.hpp"
#include "plan/plan_shards.hpp"

namespace awex {

/// Bytes that go from a trainer rank to an inference rank: one or more pieces.
struct Flow {
  uint32_t source = 0;
  uint32_t target = 0;
  Near near = Near::kDevice;
  uint64_t pieces = 0;
  uint64_t bytes = 0;
};

/// Plans by intersection: for every inference shard the boxes of trainer shards that fill it, taken
/// from the same device first, then the same node, then anywhere; so no plan moves fewer bytes
/// between devices, or between nodes. Among equally near sources the load is levelled: what has the
/// fewest choices is assigned first, and the rest goes to those that send least.
///
/// Tensors that are spread alike over both roles (the same weight of different layers, say) are of
/// one *kind*, whose routes are found once; so time and memory grow with the groups of
/// ranks (RoleShards) and with the ranks, not with their product. Pure: every rank evaluates the
/// same function, and asks for its own part of the result.
class Planner {
 public:
  /// Keeps references to all arguments. Throws a run-time error that names tensor and box if the
  /// trainers' shards do not cover an inference shard.
  Planner(const Catalogue& catalogue, const RoleShards& trainers, const RoleShards& inference,
          const Placement& placement);

  /// The bytes of the whole plan, without pieces.
  [[nodiscard]] const Plan& totals() const { return totals_; }
  /// The pieces that one device's inference rank receives, and those that its trainer sends.
  [[nodiscard]] Plan part(uint32_t device) const;
  /// Calls `visit` for all that moves, in no particular order; a pair of ranks may come often.
  void for_each_flow(const std::function<void(const Flow&)>& visit) const;

  /// Kinds of tensors, for measurements.
  [[nodiscard]] size_t kinds() const { return kinds_.size(); }

 private:
  /// A trainer rank that holds a box, and which of the tensor's shards it is (RoleShards::of).
  struct Source {
    uint32_t rank = 0;
    uint32_t holder = 0;
  };

  /// A box that inference ranks need of every tensor of a kind, and that is equally near to all of
  /// them.
  struct Route {
    std::span<const uint32_t> targets;  ///< Of RoleShards::ranks_of.
    uint32_t demand = 0;                ///< Which of the tensor's inference shards.
    Box part;
    Near near = Near::kDevice;
    Source only = {};                   ///< Where there is no choice.
    std::optional<uint32_t> deal = {};  ///< Where there is: index of the deal that chooses.
    uint32_t first_turn = 0;            ///< The first target's number among the deal's.
  };

  /// Equal boxes for which several sources are equally near: how many pieces each of them sends.
  struct Deal {
    uint32_t kind = 0;
    uint64_t piece_bytes = 0;
    uint32_t turns = 0;  ///< How many targets; each gets a piece of every tensor of the kind.
    std::vector<Source> sources = {};
    std::vector<uint64_t> shares_end = {};  ///< By source: sum of the shares up to its own.
    uint64_t stride = 1;
  };

  struct Kind {
    std::vector<uint32_t> tensors = {};
    uint64_t element = 0;  ///< Bytes, as inference holds it.
    std::vector<Route> routes = {};
  };

  class Router;

  void find_kinds();
  [[nodiscard]] bool spread_alike(uint32_t a, uint32_t b) const;
  [[nodiscard]] static uint64_t bytes_of(const Kind& kind, const Route& route);
  void level_loads();
  void share_out(Deal& deal, std::vector<uint64_t>& sent) const;
  void add_up();
  [[nodiscard]] uint64_t missing_on_device(const Kind& kind) const;
  [[nodiscard]] Source source_of(const Kind& kind, const Route& route, size_t target,
                                 size_t index) const;
  [[nodiscard]] Piece piece_of(const Kind& kind, const Route& route, size_t target,
                               size_t index) const;
  [[nodiscard]] Plan sorted(std::vector<Piece> pieces) const;

  const Catalogue& catalogue_;
  const RoleShards& trainers_;
  const RoleShards& inference_;
  const Placement& placement_;
  std::vector<uint32_t> trainer_on_;  ///< By device; kNobody where there is none.
  std::vector<Kind> kinds_;
  std::vector<Deal> deals_;
  Plan totals_;  ///< Without pieces.
};

}  // namespace awex
