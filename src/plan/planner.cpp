#include "plan/planner.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "base/checked.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

constexpr uint64_t kHashFactor = 0x9e3779b97f4a7c15;  // Odd, with bits everywhere.

std::string describe(const Box& box) {
  return fmt::format("rows [{}, {}) x columns [{}, {})", box.rows.begin, box.rows.end,
                     box.cols.begin, box.cols.end);
}

std::array<uint64_t, 4> key_of(const Box& box) {
  return {box.rows.begin, box.rows.end, box.cols.begin, box.cols.end};
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

/// Where the first element of `part`, a box inside `shard`'s, lies in the rank's region.
uint64_t offset_of(const HeldShard& shard, const Box& part, uint64_t element) {
  const uint64_t rows = part.rows.begin - shard.box.rows.begin;
  const uint64_t cols = part.cols.begin - shard.box.cols.begin;
  return shard.offset_bytes + (rows * shard.row_stride + cols) * element;
}

/// Where the scales of `part` lie at its source; absent where it is not quantised.
std::optional<ScalePlace> scales_of(const HeldShard& shard, const Box& part,
                                    const TensorInfo& info) {
  if (!info.scaling || !shard.scales) return std::nullopt;
  return scale_place(*shard.scales, shard.box, part, info.scaling->block);
}

/// Says what equal_spread compares: equal spreads have equal hashes.
uint64_t hash_of(std::span<const HeldShard> shards, uint64_t hash) {
  for (const auto& shard : shards) {
    uint64_t word = shard.group;
    for (const uint64_t bound : key_of(shard.box)) word = word * kHashFactor + bound;
    hash = mix64(hash ^ word);
  }
  return mix64(hash + shards.size());
}

bool equal_spread(std::span<const HeldShard> a, std::span<const HeldShard> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.group == y.group && x.box == y.box;
  });
}

}  // namespace

/// Finds the routes of one kind after the other, and the deals they take part in.
class Planner::Router {
 public:
  explicit Router(Planner& planner) : planner_(planner) {}

  void route(uint32_t kind) {
    kind_ = kind;
    const uint32_t tensor = planner_.kinds_[kind].tensors.front();
    find_supplies(planner_.trainers_.of(tensor));
    const auto demands = planner_.inference_.of(tensor);
    for (uint32_t i = 0; i < demands.size(); ++i) serve(i, demands[i]);
  }

 private:
  /// A box that trainers hold, and who, by node, then by rank.
  struct Supply {
    Box box;
    std::vector<Source> sources;
  };

  /// A supply that meets the demand, as one target sees it: its nearest sources.
  struct Hit {
    const Supply* supply = nullptr;
    Near near = Near::kDevice;
    std::span<const Source> sources = {};
  };

  /// A box that is taken from a hit.
  struct Part {
    size_t hit = 0;
    Box box;
  };

  [[nodiscard]] uint32_t node_of(uint32_t trainer) const {
    const auto& placement = planner_.placement_;
    return placement.device_node[placement.trainer_device[trainer]];
  }

  [[nodiscard]] std::pair<uint32_t, uint32_t> place_of(const Source& source) const {
    return {node_of(source.rank), source.rank};
  }

  void find_supplies(std::span<const HeldShard> holders) {
    supplies_.clear();
    std::map<std::array<uint64_t, 4>, size_t> by_box;
    for (uint32_t i = 0; i < holders.size(); ++i) {
      const auto [at, is_new] = by_box.emplace(key_of(holders[i].box), supplies_.size());
      if (is_new) supplies_.push_back({holders[i].box, {}});
      auto& sources = supplies_[at->second].sources;
      for (const uint32_t rank : planner_.trainers_.ranks_of(holders[i].group)) {
        sources.push_back({rank, i});
      }
    }
    for (auto& supply : supplies_) {
      auto& sources = supply.sources;
      std::stable_sort(sources.begin(), sources.end(),
                       [this](const auto& a, const auto& b) { return place_of(a) < place_of(b); });
      sources.erase(std::unique(sources.begin(), sources.end(),
                                [](const auto& a, const auto& b) { return a.rank == b.rank; }),
                    sources.end());
    }
  }

  /// Adds the routes of all targets that hold the demanded shard. Consecutive targets that find the
  /// same sources equally near share their routes.
  void serve(uint32_t index, const HeldShard& demand) {
    deals_.clear();
    hits_.clear();
    for (const auto& supply : supplies_) {
      if (!intersect(supply.box, demand.box).empty()) hits_.push_back({.supply = &supply});
    }
    auto targets = planner_.inference_.ranks_of(demand.group);
    while (!targets.empty()) {
      look_from(targets.front());
      size_t alike = 1;
      while (alike < targets.size() && sees_the_same(targets[alike])) ++alike;
      for (const auto& part : divide(demand.box, targets.front())) {
        add_route(targets.first(alike), index, part);
      }
      targets = targets.subspan(alike);
    }
  }

  void look_from(uint32_t target) {
    for (auto& hit : hits_) look_from(target, hit);
  }

  /// Whether, for all hits, the target finds the same sources equally near as the one last looked
  /// from.
  [[nodiscard]] bool sees_the_same(uint32_t target) const {
    return std::all_of(hits_.begin(), hits_.end(), [&](const Hit& hit) {
      Hit seen = hit;
      look_from(target, seen);
      return seen.near == hit.near && seen.sources.data() == hit.sources.data() &&
             seen.sources.size() == hit.sources.size();
    });
  }

  void look_from(uint32_t target, Hit& hit) const {
    const uint32_t device = planner_.placement_.inference_device[target];
    const uint32_t node = planner_.placement_.device_node[device];
    const std::span<const Source> all = hit.supply->sources;
    const auto near = from_place(all, {node, 0});
    if (near.empty() || node_of(near.front().rank) != node) {
      hit.near = Near::kCluster;
      hit.sources = all;
      return;
    }
    const uint32_t local = planner_.trainer_on_[device];
    const auto here = from_place(near, {node, local});
    const bool is_here = !here.empty() && here.front().rank == local;
    hit.near = is_here ? Near::kDevice : Near::kNode;
    hit.sources =
        is_here ? here.first(1) : near.first(near.size() - from_place(near, {node + 1, 0}).size());
  }

  /// The sources at a place and after it.
  [[nodiscard]] std::span<const Source> from_place(std::span<const Source> sources,
                                                   std::pair<uint32_t, uint32_t> place) const {
    const auto begin = std::lower_bound(
        sources.begin(), sources.end(), place,
        [this](const Source& source, const auto& wanted) { return place_of(source) < wanted; });
    return {begin, sources.end()};
  }

  /// Cuts a demanded box into boxes to take from the hits, the nearest first.
  [[nodiscard]] std::vector<Part> divide(const Box& box, uint32_t target) const {
    std::vector<size_t> order(hits_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [this](size_t a, size_t b) { return hits_[a].near < hits_[b].near; });
    std::vector<Part> parts;
    std::vector<Box> missing{box};
    for (const size_t hit : order) {
      std::vector<Box> still_missing;
      for (const auto& hole : missing) {
        const Box part = intersect(hole, hits_[hit].supply->box);
        if (part.empty()) {
          still_missing.push_back(hole);
          continue;
        }
        parts.push_back({hit, part});
        append_difference(hole, part, still_missing);
      }
      missing = std::move(still_missing);
    }
    if (missing.empty()) return parts;
    const uint32_t tensor = planner_.kinds_[kind_].tensors.front();
    throw runtime_error(fmt::format("no trainer holds {} of {}, which inference rank {} needs",
                                    describe(missing.front()),
                                    planner_.catalogue_.tensors()[tensor].name, target));
  }

  void add_route(std::span<const uint32_t> targets, uint32_t demand, const Part& part) {
    const Hit& hit = hits_[part.hit];
    Route route{.targets = targets, .demand = demand, .part = part.box, .near = hit.near};
    if (hit.sources.size() == 1) {
      route.only = hit.sources.front();
    } else {
      Deal& deal = deal_for(part, route);
      route.deal = static_cast<uint32_t>(&deal - planner_.deals_.data());
      route.first_turn = deal.turns;
      deal.turns += static_cast<uint32_t>(targets.size());
    }
    planner_.kinds_[kind_].routes.push_back(route);
  }

  /// The deal of all targets that want the same box from the same sources.
  Deal& deal_for(const Part& part, const Route& route) {
    const Hit& hit = hits_[part.hit];
    const Source* sources = hit.sources.data();
    const auto key = std::tuple(key_of(part.box), sources, hit.sources.size());
    const auto [at, is_new] = deals_.emplace(key, planner_.deals_.size());
    if (is_new) {
      const uint64_t element = planner_.kinds_[kind_].element;
      planner_.deals_.push_back({.kind = kind_,
                                 .piece_bytes = route.part.elements() * element,
                                 .sources = {hit.sources.begin(), hit.sources.end()}});
    }
    return planner_.deals_[at->second];
  }

  using DealKey = std::tuple<std::array<uint64_t, 4>, const Source*, size_t>;

  Planner& planner_;
  uint32_t kind_ = 0;
  std::vector<Supply> supplies_;     ///< Of the kind.
  std::vector<Hit> hits_;            ///< Of the demand.
  std::map<DealKey, size_t> deals_;  ///< Of the demand.
};

Planner::Planner(const Catalogue& catalogue, const RoleShards& trainers,
                 const RoleShards& inference, const Placement& placement)
    : catalogue_(catalogue),
      trainers_(trainers),
      inference_(inference),
      placement_(placement),
      trainer_on_(rank_on_devices(placement.trainer_device, placement.device_node.size())) {
  find_kinds();
  Router router(*this);
  for (uint32_t kind = 0; kind < kinds_.size(); ++kind) router.route(kind);
  level_loads();
  add_up();
}

bool Planner::spread_alike(uint32_t a, uint32_t b) const {
  return element_bytes(catalogue_.tensors()[a].dtype) ==
             element_bytes(catalogue_.tensors()[b].dtype) &&
         equal_spread(trainers_.of(a), trainers_.of(b)) &&
         equal_spread(inference_.of(a), inference_.of(b));
}

void Planner::find_kinds() {
  std::unordered_multimap<uint64_t, uint32_t> by_hash;
  for (uint32_t tensor = 0; tensor < catalogue_.tensors().size(); ++tensor) {
    const uint64_t hash = hash_of(inference_.of(tensor), hash_of(trainers_.of(tensor), 0));
    auto [at, end] = by_hash.equal_range(hash);
    while (at != end && !spread_alike(tensor, kinds_[at->second].tensors.front())) ++at;
    if (at == end) {
      at = by_hash.emplace(hash, static_cast<uint32_t>(kinds_.size()));
      kinds_.push_back({.element = element_bytes(catalogue_.tensors()[tensor].dtype)});
    }
    kinds_[at->second].tensors.push_back(tensor);
  }
}

uint64_t Planner::bytes_of(const Kind& kind, const Route& route) {
  return route.part.elements() * kind.element * kind.tensors.size() * route.targets.size();
}

void Planner::level_loads() {
  std::vector<uint64_t> sent(trainers_.ranks(), 0);
  for (const auto& kind : kinds_) {
    for (const auto& route : kind.routes) {
      if (route.deal || route.near == Near::kDevice) continue;
      sent[route.only.rank] += bytes_of(kind, route);
    }
  }
  std::vector<uint32_t> order(deals_.size());
  std::iota(order.begin(), order.end(), 0U);
  // Who has few choices goes first; then the large pieces, as small ones fill what they leave.
  std::stable_sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    const auto rank_of = [](const Deal& deal) {
      return std::pair(deal.sources.size(), ~deal.piece_bytes);
    };
    return rank_of(deals_[a]) < rank_of(deals_[b]);
  });
  for (const uint32_t deal : order) share_out(deals_[deal], sent);
}

void Planner::share_out(Deal& deal, std::vector<uint64_t>& sent) const {
  auto& sources = deal.sources;
  std::stable_sort(sources.begin(), sources.end(), [&](const Source& a, const Source& b) {
    return std::pair(sent[a.rank], a.rank) < std::pair(sent[b.rank], b.rank);
  });
  const uint64_t pieces = deal.turns * kinds_[deal.kind].tensors.size();
  // The level to which this deal can raise the `active` sources that send least.
  uint64_t below = pieces * deal.piece_bytes;
  size_t active = 0;
  while (active < sources.size() && (active == 0 || below > active * sent[sources[active].rank])) {
    below += sent[sources[active++].rank];
  }
  const uint64_t level = below / active;
  uint64_t dealt = 0;
  std::vector<uint64_t> shares(sources.size(), 0);
  for (size_t i = 0; i < active; ++i) {
    shares[i] = (level - sent[sources[i].rank]) / deal.piece_bytes;
    dealt += shares[i];
  }
  for (size_t i = 0; dealt < pieces; ++dealt, ++i) ++shares[i % active];
  for (size_t i = 0; i < sources.size(); ++i) {
    sent[sources[i].rank] += shares[i] * deal.piece_bytes;
    deal.shares_end.push_back(shares[i] + (i == 0 ? 0 : deal.shares_end.back()));
  }
  // Pieces walk through the shares in long strides, so that what is copied at about the same time
  // comes from different sources.
  deal.stride = pieces / 8 * 5 + 1;
  while (std::gcd(deal.stride, pieces) != 1) ++deal.stride;
}

Planner::Source Planner::source_of(const Kind& kind, const Route& route, size_t target,
                                   size_t index) const {
  if (!route.deal) return route.only;
  const Deal& deal = deals_[*route.deal];
  const uint64_t pieces = deal.turns * kind.tensors.size();
  const uint64_t turn = route.first_turn + target;
  const uint64_t at = (index * deal.turns + turn) % pieces * deal.stride % pieces;
  const auto end = std::upper_bound(deal.shares_end.begin(), deal.shares_end.end(), at);
  return deal.sources[static_cast<size_t>(end - deal.shares_end.begin())];
}

Piece Planner::piece_of(const Kind& kind, const Route& route, size_t target, size_t index) const {
  const uint32_t tensor = kind.tensors[index];
  const Source source = source_of(kind, route, target, index);
  const HeldShard& from = trainers_.of(tensor)[source.holder];
  const HeldShard& to = inference_.of(tensor)[route.demand];
  const TensorInfo& info = catalogue_.tensors()[tensor];
  const uint64_t source_element = element_bytes(info.source_dtype());
  return {.source = source.rank,
          .target = route.targets[target],
          .tensor = tensor,
          .box = route.part,
          .from = info.source_dtype(),
          .to = info.dtype,
          .row_bytes = route.part.cols.size() * kind.element,
          .source_offset = offset_of(from, route.part, source_element),
          .source_stride = from.row_stride * source_element,
          .target_offset = offset_of(to, route.part, kind.element),
          .target_stride = to.row_stride * kind.element,
          .scales = scales_of(from, route.part, info),
          .near = route.near,
          .choices = route.deal ? static_cast<uint32_t>(deals_[*route.deal].sources.size()) : 1};
}

void Planner::add_up() {
  for (const auto& kind : kinds_) {
    for (const auto& route : kind.routes) {
      totals_.total_pieces += kind.tensors.size() * route.targets.size();
      const bool local = route.near == Near::kDevice;
      (local ? totals_.local_bytes : totals_.remote_bytes) += bytes_of(kind, route);
    }
    totals_.remote_bytes_lower_bound += missing_on_device(kind) * kind.element;
  }
}

/// Elements of all tensors of a kind that inference ranks need and the trainers on their devices do
/// not hold. Independent of the routes. A trainer's own shards never overlap.
uint64_t Planner::missing_on_device(const Kind& kind) const {
  const uint32_t tensor = kind.tensors.front();
  const auto holders = trainers_.of(tensor);
  uint64_t missing = 0;
  for (const auto& demand : inference_.of(tensor)) {
    for (const uint32_t target : inference_.ranks_of(demand.group)) {
      missing += demand.box.elements();
      const uint32_t local = trainer_on_[placement_.inference_device[target]];
      if (local == kNobody) continue;
      const uint32_t group = trainers_.group_of(local);
      auto held = std::lower_bound(
          holders.begin(), holders.end(), group,
          [](const HeldShard& shard, uint32_t wanted) { return shard.group < wanted; });
      for (; held != holders.end() && held->group == group; ++held) {
        missing -= intersect(demand.box, held->box).elements();
      }
    }
  }
  return missing * kind.tensors.size();
}

Plan Planner::sorted(std::vector<Piece> pieces) const {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::pair(a.target, a.target_offset) < std::pair(b.target, b.target_offset);
  });
  Plan plan = totals_;
  plan.pieces = std::move(pieces);
  return plan;
}

Plan Planner::part(uint32_t device) const {
  const uint32_t sender = trainer_on_[device];
  const auto is_sender = [sender](const Source& source) { return source.rank == sender; };
  // Most of a cluster's routes concern other devices: they are passed over without dealing them.
  std::vector<bool> takes_part(deals_.size());
  std::transform(deals_.begin(), deals_.end(), takes_part.begin(), [&](const Deal& deal) {
    return std::any_of(deal.sources.begin(), deal.sources.end(), is_sender);
  });
  std::vector<Piece> pieces;
  for (const auto& kind : kinds_) {
    for (const auto& route : kind.routes) {
      const bool may_send = route.deal ? takes_part[*route.deal] : is_sender(route.only);
      for (size_t target = 0; target < route.targets.size(); ++target) {
        const bool receives = placement_.inference_device[route.targets[target]] == device;
        if (!receives && !may_send) continue;
        for (size_t i = 0; i < kind.tensors.size(); ++i) {
          if (receives || is_sender(source_of(kind, route, target, i))) {
            pieces.push_back(piece_of(kind, route, target, i));
          }
        }
      }
    }
  }
  return sorted(std::move(pieces));
}

void Planner::for_each_flow(const std::function<void(const Flow&)>& visit) const {
  for (const auto& kind : kinds_) {
    const size_t tensors = kind.tensors.size();
    for (const auto& route : kind.routes) {
      const uint64_t bytes = route.part.elements() * kind.element;
      for (size_t target = 0; target < route.targets.size(); ++target) {
        const uint32_t to = route.targets[target];
        if (!route.deal) {
          visit({route.only.rank, to, route.near, tensors, bytes * tensors});
          continue;
        }
        for (size_t i = 0; i < tensors; ++i) {
          visit({source_of(kind, route, target, i).rank, to, route.near, 1, bytes});
        }
      }
    }
  }
}

}  // namespace awex
