#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "layout/layout.hpp"
#include "plan/planner.hpp"

/// Plans of all devices at once, for small worlds. The product's ranks plan and prove their own
/// part alone.
namespace awex::test {

/// A layout whose ranks are all at hand, each unlike the others. `ranks` must outlive it.
class GivenLayout final : public Layout {
 public:
  explicit GivenLayout(const std::vector<RankLayout>& ranks) : ranks_(ranks) {}
  [[nodiscard]] std::string describe() const override { return "given"; }
  [[nodiscard]] uint32_t ranks() const override { return static_cast<uint32_t>(ranks_.size()); }
  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override { return ranks_[rank]; }

 private:
  const std::vector<RankLayout>& ranks_;
};

[[nodiscard]] inline std::vector<RankLayout> all_rank_layouts(const Layout& layout) {
  std::vector<RankLayout> ranks;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) ranks.push_back(layout.rank_layout(rank));
  return ranks;
}

/// What the devices' parts say that their inference ranks receive, in a plan's order.
[[nodiscard]] inline Plan whole_plan(const Planner& planner, const Placement& placement) {
  Plan whole = planner.totals();
  for (uint32_t device = 0; device < placement.device_node.size(); ++device) {
    for (const auto& piece : planner.part(device).pieces) {
      if (placement.inference_device[piece.target] == device) whole.pieces.push_back(piece);
    }
  }
  std::sort(whole.pieces.begin(), whole.pieces.end(), [](const Piece& a, const Piece& b) {
    return std::pair(a.target, a.target_offset) < std::pair(b.target, b.target_offset);
  });
  return whole;
}

[[nodiscard]] inline Plan make_plan(const Catalogue& catalogue,
                                    const std::vector<RankLayout>& trainers,
                                    const std::vector<RankLayout>& inference,
                                    const Placement& placement) {
  const RoleShards from(catalogue, GivenLayout(trainers));
  const RoleShards to(catalogue, GivenLayout(inference));
  return whole_plan(Planner(catalogue, from, to, placement), placement);
}

/// Proves what every inference rank receives (prove_received), and that nobody else receives
/// anything. Throws what the proof throws.
inline void prove_plan(const Plan& plan, const Catalogue& catalogue,
                       const std::vector<RankLayout>& trainers,
                       const std::vector<RankLayout>& inference) {
  const GivenLayout from(trainers);
  const GivenLayout to(inference);
  for (const auto& piece : plan.pieces) {
    if (piece.target >= to.ranks()) throw runtime_error("a piece goes to no rank");
  }
  for (uint32_t rank = 0; rank < to.ranks(); ++rank) {
    prove_received(plan, catalogue, from, to, rank);
  }
}

}  // namespace awex::test
