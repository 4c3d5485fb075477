#include "plan/plan_copies.hpp"

#include <doctest/doctest.h>

#include <map>
#include <tuple>

#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/presets.hpp"
#include "support/random_model.hpp"
#include "support/whole_plan.hpp"

namespace awex::test {
namespace {

/// Where an element of an inference rank comes from: trainer, byte, dtypes, and the byte of its
/// scale.
using Origin = std::tuple<uint32_t, uint64_t, DType, DType, uint64_t>;

/// By inference rank and byte.
using Elements = std::map<std::pair<uint32_t, uint64_t>, Origin>;

template <class Copy>
void carry_out(const Copy& copy, uint64_t rows, Elements& elements) {
  const uint64_t size = element_bytes(copy.to);
  for (uint64_t row = 0; row < rows; ++row) {
    for (uint64_t col = 0; col < copy.row_bytes / size; ++col) {
      const auto to =
          std::pair(copy.target, copy.target_offset + row * copy.target_stride + col * size);
      const Origin from{
          copy.source,
          copy.source_offset + row * copy.source_stride + col * element_bytes(copy.from), copy.from,
          copy.to, copy.scales ? copy.scales->moved(row, col).offset_bytes : 0};
      REQUIRE(elements.emplace(to, from).second);
    }
  }
}

Plan plan_of(const std::string& trainer, const std::string& inference, const Catalogue& model,
             uint32_t ranks) {
  const Catalogue held = held_catalogue(inference, model);
  Placement placement;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    placement.trainer_device.push_back(rank);
    placement.inference_device.push_back(rank);
    placement.device_node.push_back(0);
  }
  return make_plan(held,
                   all_rank_layouts(*with_scales(make_trainer_layout(trainer, model, ranks), held)),
                   all_rank_layouts(*make_inference_layout(inference, held, ranks)), placement);
}

}  // namespace

TEST_CASE("merged copies move the same elements to the same places") {
  Dice dice(31);
  size_t pieces = 0;
  size_t copies = 0;
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    const Catalogue catalogue = make_catalogue("random", random_model(dice));
    const auto ranks = static_cast<uint32_t>(dice.one_of({1, 2, 4}));
    const Plan plan =
        plan_of(random_engine(dice, any_trainer, catalogue, ranks).spec(),
                random_engine(dice, any_inference, catalogue, ranks).spec(), catalogue, ranks);
    Elements apart;
    for (const auto& piece : plan.pieces) carry_out(piece, piece.box.rows.size(), apart);
    Elements together;
    const auto merged = merge_pieces(plan.pieces);
    for (const auto& copy : merged) carry_out(copy, copy.rows, together);
    CHECK(apart == together);
    pieces += plan.pieces.size();
    copies += merged.size();
  }
  CHECK(copies < pieces);
}

TEST_CASE("query groups and stacked experts become single copies") {
  ModelConfig config = keep_first_layers(preset_config("tiny-moe"), 1, "tiny-moe");
  const Catalogue catalogue = make_catalogue("one layer", config);
  const Plan plan = plan_of("megatron:tp=1", "sglang:tp=1", catalogue, 1);
  // 12 groups of q, k and v; 12 experts of gate, up and down; 9 other tensors at most.
  CHECK(plan.pieces.size() > 72);
  CHECK(merge_pieces(plan.pieces).size() <= 3 + 2 + 9);
}

}  // namespace awex::test
