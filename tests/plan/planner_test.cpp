// What the planner promises beyond a right plan: ranks that plan apart agree, loads are level, and
// a cluster's plan costs what its structure costs.
#include "plan/planner.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/presets.hpp"
#include "support/large_layouts.hpp"
#include "support/random_model.hpp"
#include "support/whole_plan.hpp"

namespace awex::test {
namespace {

/// A layout's plan with everything that it refers to.
struct Planned {
  Planned(const Catalogue& catalogue, const Layout& trainer, const Layout& inference,
          Placement its_placement)
      : placement(std::move(its_placement)),
        trainers(catalogue, trainer),
        receivers(catalogue, inference),
        planner(catalogue, trainers, receivers, placement) {}

  Placement placement;
  RoleShards trainers;
  RoleShards receivers;
  Planner planner;
};

bool same_piece(const Piece& a, const Piece& b) {
  return a.source == b.source && a.target == b.target && a.tensor == b.tensor && a.box == b.box &&
         a.row_bytes == b.row_bytes && a.source_offset == b.source_offset &&
         a.source_stride == b.source_stride && a.target_offset == b.target_offset &&
         a.target_stride == b.target_stride && a.from == b.from && a.to == b.to &&
         a.scales == b.scales && a.near == b.near && a.choices == b.choices;
}

bool same_pieces(const std::vector<Piece>& a, const std::vector<Piece>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_piece);
}

/// The pieces of the whole plan that concern a device, in the whole plan's order.
std::vector<Piece> pieces_at(const Plan& whole, const Placement& placement, uint32_t device) {
  std::vector<Piece> pieces;
  for (const auto& piece : whole.pieces) {
    if (placement.trainer_device[piece.source] == device ||
        placement.inference_device[piece.target] == device) {
      pieces.push_back(piece);
    }
  }
  return pieces;
}

/// The most that any trainer sends to other devices, divided by the mean of those in `among`.
double imbalance(const Planner& planner, const std::vector<uint32_t>& among) {
  std::map<uint32_t, uint64_t> sent;
  planner.for_each_flow([&](const Flow& flow) {
    if (flow.near != Near::kDevice) sent[flow.source] += flow.bytes;
  });
  uint64_t most = 0;
  uint64_t all = 0;
  for (const auto& [rank, bytes] : sent) {
    most = std::max(most, bytes);
    all += bytes;
  }
  return static_cast<double>(most) * static_cast<double>(among.size()) / static_cast<double>(all);
}

std::vector<uint32_t> first_ranks(uint32_t count) {
  std::vector<uint32_t> ranks(count);
  std::iota(ranks.begin(), ranks.end(), 0U);
  return ranks;
}

/// Trainers on the first devices, inference ranks on others of other nodes.
Placement apart(uint32_t trainers, uint32_t inference) {
  Placement placement;
  for (uint32_t rank = 0; rank < trainers; ++rank) {
    placement.trainer_device.push_back(rank);
    placement.device_node.push_back(0);
  }
  for (uint32_t rank = 0; rank < inference; ++rank) {
    placement.inference_device.push_back(trainers + rank);
    placement.device_node.push_back(1);
  }
  return placement;
}

LargeModel small_large_model() {
  LargeModel model;
  model.layers = 8;
  model.experts = 16;
  model.hidden = 64;
  model.intermediate = 128;
  model.moe_intermediate = 32;
  model.heads = 16;
  model.vocab = 256;
  return model;
}

}  // namespace

TEST_CASE("every device's own plan is its part of the whole, also with replicas left out") {
  Dice dice(21);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    const Catalogue model = make_catalogue("random", random_model(dice));
    const auto ranks = static_cast<uint32_t>(dice.one_of({1, 2, 3, 4, 6, 8, 12}));
    const auto trainer_spec = random_engine(dice, any_trainer, model, ranks).spec();
    const auto spec = random_engine(dice, any_inference, model, ranks).spec();
    const Catalogue catalogue = held_catalogue(spec, model);
    const auto trainer = with_scales(make_trainer_layout(trainer_spec, model, ranks), catalogue);
    const auto inference = make_inference_layout(spec, catalogue, ranks);
    const Planned world(catalogue, *trainer, *inference, colocated(ranks, 4));
    const Plan whole = whole_plan(world.planner, world.placement);
    const auto trainers = all_rank_layouts(*trainer);
    const auto receivers = all_rank_layouts(*inference);
    prove_plan(whole, catalogue, trainers, receivers);
    CHECK(whole.remote_bytes == whole.remote_bytes_lower_bound);
    // Knowing which ranks are alike is worth time, and changes no bytes.
    const Plan apart = make_plan(catalogue, trainers, receivers, world.placement);
    CHECK(apart.local_bytes == whole.local_bytes);
    CHECK(apart.remote_bytes == whole.remote_bytes);
    for (uint32_t device = 0; device < ranks; ++device) {
      const Plan part = world.planner.part(device);
      CHECK(same_pieces(part.pieces, pieces_at(whole, world.placement, device)));
      CHECK(part.remote_bytes == whole.remote_bytes);
      CHECK_NOTHROW(prove_received(part, catalogue, *trainer, *inference, device));
    }
  }
}

TEST_CASE("ranks that a layout calls alike hold the same boxes at the same places") {
  Dice dice(22);
  for (int round = 0; round < 40; ++round) {
    const Catalogue model = make_catalogue("random", random_model(dice));
    const uint32_t ranks = 12;
    const auto spec = random_engine(dice, any_inference, model, ranks).spec();
    const Catalogue catalogue = held_catalogue(spec, model);
    const auto check = [&](const Layout& layout) {
      CAPTURE(layout.describe());
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const RankLayout mine = layout.rank_layout(rank);
        const RankLayout like = layout.rank_layout(layout.first_like(rank));
        CHECK(mine.bytes == like.bytes);
        CHECK(std::equal(mine.shards.begin(), mine.shards.end(), like.shards.begin(),
                         like.shards.end(), [](const Shard& a, const Shard& b) {
                           return a.tensor == b.tensor && a.box == b.box &&
                                  a.offset_bytes == b.offset_bytes &&
                                  a.row_stride == b.row_stride && a.scales == b.scales;
                         }));
      }
    };
    check(*with_scales(
        make_trainer_layout(random_engine(dice, any_trainer, model, ranks).spec(), model, ranks),
        catalogue));
    check(*make_inference_layout(spec, catalogue, ranks));
  }
}

TEST_CASE("replicas share the sending evenly, whatever their number") {
  const Catalogue catalogue = make_catalogue("even", preset_config("tiny-dense"));
  for (const uint32_t trainers : {2U, 3U, 5U, 8U}) {
    for (const uint32_t receivers : {1U, 2U, 3U, 7U}) {
      CAPTURE(trainers);
      CAPTURE(receivers);
      const auto trainer = make_trainer_layout("hf", catalogue, trainers);
      const auto inference = make_inference_layout("hf", catalogue, receivers);
      const Planned world(catalogue, *trainer, *inference, apart(trainers, receivers));
      CHECK(world.planner.totals().local_bytes == 0);
      CHECK(imbalance(world.planner, first_ranks(trainers)) <= 1.1);
    }
  }
}

TEST_CASE("who must send much is spared where others can send") {
  // Tensor "only" is with rank 0 alone; both hold "either", in eight equal tensors.
  std::vector<TensorInfo> tensors{{"only", DType::kBf16, 40, 1, true}};
  for (int i = 0; i < 8; ++i) {
    tensors.push_back({fmt::format("either.{}", i), DType::kBf16, 10, 1, true});
  }
  const Catalogue catalogue("spared", {}, std::move(tensors));
  std::vector<RankLayout> trainers(2);
  std::vector<RankLayout> inference(1);
  const auto hold = [](RankLayout& rank, uint32_t tensor, uint64_t rows) {
    rank.shards.push_back({.tensor = tensor,
                           .box = {{0, rows}, {0, 1}},
                           .offset_bytes = rank.bytes,
                           .row_stride = 1});
    rank.bytes += kParameterAlignment;
  };
  for (uint32_t tensor = 0; tensor < 9; ++tensor) {
    const uint64_t rows = catalogue.tensors()[tensor].rows;
    hold(inference[0], tensor, rows);
    hold(trainers[0], tensor, rows);
    if (tensor > 0) hold(trainers[1], tensor, rows);
  }
  const Plan plan = make_plan(catalogue, trainers, inference, apart(2, 1));
  std::map<uint32_t, uint64_t> sent;
  for (const auto& piece : plan.pieces) sent[piece.source] += piece.bytes();
  CHECK(sent[0] == 120);
  CHECK(sent[1] == 120);
}

TEST_CASE("reasons tell a near source from a far one, and a choice from none") {
  Piece piece;
  CHECK(describe_choice(piece) == "on the same GPU");
  piece.near = Near::kNode;
  CHECK(describe_choice(piece) == "the only source on the node");
  piece.near = Near::kCluster;
  piece.choices = 8;
  CHECK(describe_choice(piece) == "one of 8 sources in the cluster");
}

TEST_CASE("stages, spread experts and instances: complete, minimal and level") {
  const LargeModel model = small_large_model();
  const Catalogue catalogue = large_catalogue(model);
  const uint32_t ranks = 64;
  const LargeLayout trainer(catalogue, model, ranks, 4, 4, 8);
  const LargeLayout inference(catalogue, model, ranks, 16, 1, 16);
  const Planned world(catalogue, trainer, inference, colocated(ranks, 8));
  const Plan whole = whole_plan(world.planner, world.placement);
  prove_plan(whole, catalogue, all_rank_layouts(trainer), all_rank_layouts(inference));
  CHECK(whole.remote_bytes == whole.remote_bytes_lower_bound);
  CHECK(whole.local_bytes > 0);
  for (const uint32_t device : {0U, 17U, 63U}) {
    const Plan part = world.planner.part(device);
    CHECK(same_pieces(part.pieces, pieces_at(whole, world.placement, device)));
    CHECK_NOTHROW(prove_received(part, catalogue, trainer, inference, device));
  }
  // Fewer kinds than tensors: this is what makes it fast.
  CHECK(world.planner.kinds() < catalogue.tensors().size());
}

TEST_CASE("flows add up to the plan") {
  const LargeModel model = small_large_model();
  const Catalogue catalogue = large_catalogue(model);
  const LargeLayout trainer(catalogue, model, 64, 4, 4, 8);
  const LargeLayout inference(catalogue, model, 64, 16, 1, 16);
  const Planned world(catalogue, trainer, inference, colocated(64, 8));
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> flows;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> pieces;
  uint64_t count = 0;
  world.planner.for_each_flow([&](const Flow& flow) {
    flows[{flow.source, flow.target}] += flow.bytes;
    count += flow.pieces;
  });
  const Plan whole = whole_plan(world.planner, world.placement);
  for (const auto& piece : whole.pieces) pieces[{piece.source, piece.target}] += piece.bytes();
  CHECK(flows == pieces);
  CHECK(count == whole.pieces.size());
  CHECK(count == whole.total_pieces);
}

TEST_CASE("a part that lacks a piece, or has one from elsewhere, is not proven") {
  const LargeModel model = small_large_model();
  const Catalogue catalogue = large_catalogue(model);
  const LargeLayout trainer(catalogue, model, 64, 4, 4, 8);
  const LargeLayout inference(catalogue, model, 64, 16, 1, 16);
  const Planned world(catalogue, trainer, inference, colocated(64, 8));
  const Plan part = world.planner.part(5);
  const auto received = std::find_if(part.pieces.begin(), part.pieces.end(),
                                     [](const Piece& piece) { return piece.target == 5; });
  REQUIRE(received != part.pieces.end());
  const auto at = received - part.pieces.begin();
  Plan lacking = part;
  lacking.pieces.erase(lacking.pieces.begin() + at);
  CHECK_THROWS_AS(prove_received(lacking, catalogue, trainer, inference, 5), Error);
  Plan misplaced = part;
  misplaced.pieces[static_cast<size_t>(at)].source_offset += 2;
  CHECK_THROWS_AS(prove_received(misplaced, catalogue, trainer, inference, 5), Error);
  Plan nowhere = part;
  nowhere.pieces[static_cast<size_t>(at)].source = 64;
  CHECK_THROWS_AS(prove_received(nowhere, catalogue, trainer, inference, 5), Error);
}

TEST_CASE("Kimi-K2 on 1,024 GPUs: exact totals, a proven part") {
  const Catalogue catalogue = make_catalogue("kimi-k2", preset_config("kimi-k2"));
  const uint32_t gpus = 1024;
  const auto trainer =
      make_trainer_layout("megatron:tp=8,pp=16,last=1,ep=64,etp=1", catalogue, gpus);
  const auto inference = make_inference_layout("sglang:tp=32,ep=32", catalogue, gpus);
  const Planned world(catalogue, *trainer, *inference, colocated(gpus, 8));
  uint64_t wanted = 0;
  uint64_t local = 0;
  for (uint32_t gpu = 0; gpu < gpus; ++gpu) {
    std::map<uint32_t, std::vector<Box>> held;
    for (const auto& shard : trainer->rank_layout(gpu).shards) {
      held[shard.tensor].push_back(shard.box);
    }
    for (const auto& shard : inference->rank_layout(gpu).shards) {
      const uint64_t element = element_bytes(catalogue.tensors()[shard.tensor].dtype);
      wanted += shard.box.elements() * element;
      for (const auto& box : held[shard.tensor]) {
        local += intersect(box, shard.box).elements() * element;
      }
    }
  }
  const Plan& totals = world.planner.totals();
  CHECK(totals.local_bytes == local);
  CHECK(totals.remote_bytes == wanted - local);
  CHECK(totals.remote_bytes_lower_bound == wanted - local);
  CHECK_NOTHROW(prove_received(world.planner.part(777), catalogue, *trainer, *inference, 777));
}

}  // namespace awex::test
