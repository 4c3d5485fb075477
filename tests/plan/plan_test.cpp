// Properties of plans, over random models, layouts, worlds and placements: every element that an
// inference rank needs arrives once, from where its own identity lies, by the shortest way.
#include "plan/plan.hpp"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/catalogue.hpp"
#include "plan/plan_shards.hpp"
#include "plan/rounds.hpp"
#include "support/oracle.hpp"
#include "support/oracle_writer.hpp"
#include "support/random_model.hpp"
#include "support/whole_plan.hpp"

namespace awex::test {
namespace {

/// A whole request to the planner, and what the oracle says about its two ends.
struct World {
  explicit World(const ModelConfig& config) : World(make_catalogue("random", config)) {}
  explicit World(Catalogue its_model) : model(std::move(its_model)), catalogue(model) {}

  Catalogue model;
  Catalogue catalogue;  ///< What inference holds.
  EngineCase trainer_engine;
  EngineCase inference_engine;
  Placement placement;
  std::vector<RankLayout> trainers;
  std::vector<RankLayout> inference;
  std::vector<std::vector<Identity>> trainer_regions;  ///< By trainer rank, by byte.
  std::vector<std::vector<Identity>> inference_regions;
  /// By trainer rank: what is the scale at a byte, of all blocks that the rank touches.
  std::vector<std::map<uint64_t, Identity>> touched_scales;

  [[nodiscard]] uint64_t element() const { return element_bytes(catalogue.config().dtype); }
  [[nodiscard]] std::string text() const {
    return fmt::format(
        "{} x {} -> {} x {} on {} devices, {} nodes; heads {}/{}, vocab {}", trainer_engine.spec(),
        trainers.size(), inference_engine.spec(), inference.size(), placement.device_node.size(),
        1 + *std::max_element(placement.device_node.begin(), placement.device_node.end()),
        catalogue.config().heads, catalogue.config().kv_heads, catalogue.config().vocab);
  }
  [[nodiscard]] Plan plan() const { return make_plan(catalogue, trainers, inference, placement); }
};

std::vector<std::vector<Identity>> regions_of(const EngineCase& engine, const Catalogue& catalogue,
                                              const std::vector<RankLayout>& layouts) {
  std::vector<std::vector<Identity>> regions;
  for (uint32_t rank = 0; rank < layouts.size(); ++rank) {
    regions.push_back(
        expected_region(expected_contents(engine, catalogue, rank, layouts.size()), layouts[rank]));
  }
  return regions;
}

/// Adds the scales to trainers' regions: as theirs where they own them, which is what inference may
/// be sent.
void fill_scales(World& world) {
  const uint64_t block = scale_block(world.inference_engine);
  for (uint32_t rank = 0; rank < world.trainers.size(); ++rank) {
    const RankLayout& layout = world.trainers[rank];
    auto& region = world.trainer_regions[rank];
    const auto touched = expected_scales(layout, world.catalogue, block, false);
    for (const auto& [at, scale] : touched) {
      REQUIRE(at >= region.size());
      REQUIRE(at + sizeof(float) <= layout.bytes);
    }
    region.resize(layout.bytes, kPadding);
    for (const auto& [at, scale] : expected_scales(layout, world.catalogue, block, true)) {
      std::fill_n(region.begin() + static_cast<ptrdiff_t>(at), sizeof(float), kRest);
      region[at] = scale;
    }
    world.touched_scales.push_back(touched);
  }
}

void fill_layouts(World& world, uint32_t trainers, uint32_t inference) {
  world.catalogue = held_catalogue(world.inference_engine.spec(), world.model);
  const Catalogue& held = world.catalogue;
  const auto base = make_trainer_layout(world.trainer_engine.spec(), world.model, trainers);
  world.trainer_regions = regions_of(world.trainer_engine, world.model, all_rank_layouts(*base));
  world.trainers = all_rank_layouts(
      *with_scales(make_trainer_layout(world.trainer_engine.spec(), world.model, trainers), held));
  world.inference =
      all_rank_layouts(*make_inference_layout(world.inference_engine.spec(), held, inference));
  world.inference_regions = regions_of(world.inference_engine, held, world.inference);
  fill_scales(world);
}

/// A device for each of `ranks` ranks, none twice, in any order.
std::vector<uint32_t> random_devices(Dice& dice, uint32_t ranks, uint32_t devices) {
  std::vector<uint32_t> order;
  for (uint32_t device = 0; device < devices; ++device) order.push_back(device);
  dice.shuffle(order);
  order.resize(ranks);
  return order;
}

uint32_t random_ranks(Dice& dice) {
  return static_cast<uint32_t>(dice.one_in(2) ? dice.between(1, 12)
                                              : dice.one_of({2, 4, 6, 8, 12}));
}

/// `colocated`: every device has a rank of both roles. Otherwise the roles have different numbers
/// of ranks, and devices have one of each, of one role, or none.
std::unique_ptr<World> random_world(Dice& dice, bool colocated = true) {
  auto world = std::make_unique<World>(random_model(dice));
  const uint32_t trainers = random_ranks(dice);
  const uint32_t inference = colocated ? trainers : random_ranks(dice);
  const uint32_t devices = colocated ? trainers : std::max(trainers, inference) + 2;
  world->trainer_engine = random_engine(dice, any_trainer, world->model, trainers);
  world->inference_engine = random_engine(dice, any_inference, world->model, inference);
  fill_layouts(*world, trainers, inference);
  const auto nodes = dice.between(1, 4);
  for (uint32_t device = 0; device < devices; ++device) {
    world->placement.device_node.push_back(static_cast<uint32_t>(dice.below(nodes)));
  }
  world->placement.trainer_device = random_devices(dice, trainers, devices);
  world->placement.inference_device = random_devices(dice, inference, devices);
  return world;
}

/// Cuts a matrix of side `side` into a grid of random tiles and deals them to `ranks` ranks, each
/// tile a parameter of its own; `regions` gets the identities.
std::vector<RankLayout> random_tiling(Dice& dice, uint64_t side, uint32_t ranks, uint64_t element,
                                      std::vector<std::vector<Identity>>& regions) {
  std::vector<RankLayout> layouts(ranks);
  regions.resize(ranks);
  const uint64_t tall = dice.between(1, side);
  const uint64_t wide = dice.between(1, side);
  for (uint64_t top = 0; top < side; top += tall) {
    for (uint64_t left = 0; left < side; left += wide) {
      const Box tile{{top, std::min(top + tall, side)}, {left, std::min(left + wide, side)}};
      const uint64_t rank = dice.below(ranks);
      auto& region = regions[rank];
      layouts[rank].shards.push_back(
          {.box = tile, .offset_bytes = region.size(), .row_stride = tile.cols.size() + 1});
      for (uint64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
        for (uint64_t col = tile.cols.begin; col < tile.cols.end; ++col) {
          region.push_back(identity_of(0, row * side + col));
          region.insert(region.end(), element - 1, kRest);
        }
        region.insert(region.end(), element, kPadding);
      }
    }
  }
  return layouts;
}

/// One matrix that both roles cut into tiles in their own way; rows are strided on both ends.
std::unique_ptr<World> random_tiles(Dice& dice) {
  const uint64_t side = dice.between(1, 12);
  ModelConfig config;
  auto world = std::make_unique<World>(
      Catalogue("tiles", config, {{.name = "matrix", .rows = side, .cols = side}}));
  const uint32_t ranks = random_ranks(dice);
  const uint64_t element = world->element();
  world->trainers = random_tiling(dice, side, ranks, element, world->trainer_regions);
  world->inference = random_tiling(dice, side, ranks, element, world->inference_regions);
  world->placement.trainer_device = random_devices(dice, ranks, ranks);
  world->placement.inference_device = random_devices(dice, ranks, ranks);
  for (uint32_t device = 0; device < ranks; ++device) {
    world->placement.device_node.push_back(device / 4);
  }
  return world;
}

/// For each device or node the elements of the model that trainers there hold.
class Holdings {
 public:
  explicit Holdings(const World& world) : base_{0} {
    for (const TensorInfo& tensor : world.catalogue.tensors()) {
      base_.push_back(base_.back() + tensor.elements());
    }
    for (uint32_t rank = 0; rank < world.trainers.size(); ++rank) {
      const uint32_t device = world.placement.trainer_device[rank];
      auto& on_device = device_[device];
      auto& on_node = node_[world.placement.device_node[device]];
      on_device.resize(base_.back());
      on_node.resize(base_.back());
      for (const Identity id : world.trainer_regions[rank]) {
        if (id == kPadding || id == kRest) continue;
        on_device[flat(id)] = true;
        on_node[flat(id)] = true;
      }
    }
  }

  [[nodiscard]] bool device_holds(uint32_t device, Identity id) const {
    return holds(device_, device, id);
  }
  [[nodiscard]] bool node_holds(uint32_t node, Identity id) const { return holds(node_, node, id); }

 private:
  using Sets = std::map<uint32_t, std::vector<bool>>;

  [[nodiscard]] uint64_t flat(Identity id) const { return base_.at(tensor_of(id)) + index_of(id); }
  [[nodiscard]] bool holds(const Sets& sets, uint32_t key, Identity id) const {
    const auto found = sets.find(key);
    return found != sets.end() && found->second[flat(id)];
  }

  std::vector<uint64_t> base_;
  Sets device_;
  Sets node_;
};

/// Carries a plan out, element by element, on regions of identities, and counts bytes by itself.
class Execution {
 public:
  explicit Execution(const World& world)
      : world_(world),
        holdings_(world),
        scaler_(world.catalogue, scale_block(world.inference_engine)) {
    for (const auto& region : world.inference_regions) {
      arrived_.emplace_back(region.size(), std::nullopt);
    }
  }

  /// What is wrong with the piece, or empty.
  std::string carry_out(const Piece& piece) {
    if (std::string wrong = wrong_dtypes(piece); !wrong.empty()) return wrong;
    const uint64_t size = element_bytes(piece.to);
    if (piece.source >= world_.trainers.size()) return "from a trainer that does not exist";
    if (piece.target >= world_.inference.size()) return "to a rank that does not exist";
    if (piece.box.empty()) return "an empty piece";
    if (piece.row_bytes != piece.box.cols.size() * size) return "row_bytes is not the box's width";
    for (uint64_t row = 0; row < piece.box.rows.size(); ++row) {
      for (uint64_t byte = 0; byte < piece.row_bytes; byte += size) {
        const Identity id =
            identity_of(piece.tensor, (piece.box.rows.begin + row) *
                                              world_.catalogue.tensors().at(piece.tensor).cols +
                                          piece.box.cols.begin + byte / size);
        const uint64_t from = byte / size * element_bytes(piece.from);
        std::string wrong = copy(piece, piece.source_offset + row * piece.source_stride + from,
                                 piece.target_offset + row * piece.target_stride + byte, id);
        if (wrong.empty()) wrong = scale(piece, row, byte / size, id);
        if (!wrong.empty()) {
          return fmt::format("{}: {}", describe_identity(world_.catalogue, id), wrong);
        }
      }
    }
    return {};
  }

  /// The same of a copy of several pieces: the target says what each element should be.
  std::string carry_out(const MergedCopy& merged) {
    const uint64_t size = element_bytes(merged.to);
    for (uint64_t row = 0; row < merged.rows; ++row) {
      for (uint64_t byte = 0; byte < merged.row_bytes; byte += size) {
        const uint64_t to = merged.target_offset + row * merged.target_stride + byte;
        const auto& region = world_.inference_regions.at(merged.target);
        if (to >= region.size() || region[to] == kPadding || region[to] == kRest) {
          return "to where no element begins";
        }
        const Identity id = region[to];
        const Piece piece{.source = merged.source,
                          .target = merged.target,
                          .tensor = tensor_of(id),
                          .box = {},
                          .from = merged.from,
                          .to = merged.to,
                          .scales = merged.scales};
        std::string wrong = wrong_dtypes(piece);
        const uint64_t from = byte / size * element_bytes(merged.from);
        if (wrong.empty()) {
          wrong = copy(piece, merged.source_offset + row * merged.source_stride + from, to, id);
        }
        if (wrong.empty()) wrong = scale(piece, row, byte / size, id);
        if (!wrong.empty()) {
          return fmt::format("{}: {}", describe_identity(world_.catalogue, id), wrong);
        }
      }
    }
    return {};
  }

  /// The first element that did not arrive, or that arrived where nothing belongs; else empty.
  [[nodiscard]] std::string incomplete() const {
    for (uint32_t rank = 0; rank < arrived_.size(); ++rank) {
      for (uint64_t i = 0; i < arrived_[rank].size(); ++i) {
        const Identity want = world_.inference_regions[rank][i];
        const Identity got = arrived_[rank][i].value_or(kPadding);
        if (got == want) continue;
        return fmt::format("rank {} has {} instead of {}", rank,
                           describe_identity(world_.catalogue, got),
                           describe_identity(world_.catalogue, want));
      }
    }
    return {};
  }

  uint64_t local_bytes = 0;
  uint64_t remote_bytes = 0;
  uint64_t not_on_device_bytes = 0;  ///< Of elements that no trainer on the target's device holds.

 private:
  /// Scales have no other dtype at the trainer; tensors have the model's there.
  [[nodiscard]] std::string wrong_dtypes(const Piece& piece) const {
    const std::string& tensor = world_.catalogue.tensors().at(piece.tensor).name;
    const ModelConfig& config = world_.model.config();
    if (piece.from != expected_dtype(config, tensor)) return "from another dtype";
    if (piece.to != expected_dtype(config, tensor, world_.inference_engine)) {
      return "to another dtype";
    }
    const bool quantised = piece.to == DType::kF8E4M3;
    return piece.scales.has_value() == quantised ? "" : "with scales for nothing, or without";
  }

  /// What is wrong with the scale that an element of a piece is divided by.
  [[nodiscard]] std::string scale(const Piece& piece, uint64_t row, uint64_t col,
                                  Identity id) const {
    if (!piece.scales) return {};
    const ScalePlace& place = *piece.scales;
    const uint64_t down = (place.row_in_block + row) / place.block;
    const uint64_t right = (place.col_in_block + col) / place.block;
    const auto& scales = world_.touched_scales[piece.source];
    const auto found =
        scales.find(place.offset_bytes + (down * place.row_stride + right) * sizeof(float));
    if (found == scales.end()) return "divided by what is no scale";
    return found->second == scaler_.scale_of(id) ? "" : "divided by another block's scale";
  }

  std::string copy(const Piece& piece, uint64_t from, uint64_t to, Identity id) {
    const uint64_t size = element_bytes(piece.to);
    const auto& source = world_.trainer_regions[piece.source];
    auto& target = arrived_[piece.target];
    if (from + element_bytes(piece.from) > source.size() || to + size > target.size()) {
      return "beyond a region";
    }
    if (source[from] != id) {
      return "the source has " + describe_identity(world_.catalogue, source[from]);
    }
    for (uint64_t byte = to; byte < to + size; ++byte) {
      if (target[byte].has_value()) return "written twice";
      target[byte] = byte == to ? id : kRest;
    }
    return count(piece, id);
  }

  std::string count(const Piece& piece, Identity id) {
    const uint32_t from = world_.placement.trainer_device[piece.source];
    const uint32_t to = world_.placement.inference_device[piece.target];
    const uint32_t node = world_.placement.device_node[to];
    const bool on_device = holdings_.device_holds(to, id);
    const uint64_t size = element_bytes(piece.to);
    (from == to ? local_bytes : remote_bytes) += size;
    if (!on_device) not_on_device_bytes += size;
    if (on_device && from != to) return "came from another device though its own has it";
    if (holdings_.node_holds(node, id) && world_.placement.device_node[from] != node) {
      return "came from another node though its own has it";
    }
    return {};
  }

  const World& world_;
  Holdings holdings_;
  Scaler scaler_;
  std::vector<std::vector<std::optional<Identity>>> arrived_;
};

void check_plan(const World& world) {
  CAPTURE(world.text());
  const Plan plan = world.plan();
  Execution execution(world);
  uint32_t last_target = 0;
  for (const Piece& piece : plan.pieces) {
    const std::string wrong = execution.carry_out(piece);
    REQUIRE_MESSAGE(wrong.empty(), wrong);
    CHECK(piece.target >= last_target);
    last_target = piece.target;
  }
  const std::string incomplete = execution.incomplete();
  CHECK_MESSAGE(incomplete.empty(), incomplete);
  CHECK(plan.local_bytes == execution.local_bytes);
  CHECK(plan.remote_bytes == execution.remote_bytes);
  CHECK(plan.remote_bytes_lower_bound == execution.not_on_device_bytes);
  CHECK(plan.remote_bytes == plan.remote_bytes_lower_bound);
  CHECK_NOTHROW(prove_plan(plan, world.catalogue, world.trainers, world.inference));
}

bool same_piece(const Piece& a, const Piece& b) {
  return a.source == b.source && a.target == b.target && a.tensor == b.tensor && a.box == b.box &&
         a.row_bytes == b.row_bytes && a.source_offset == b.source_offset &&
         a.source_stride == b.source_stride && a.target_offset == b.target_offset &&
         a.target_stride == b.target_stride && a.from == b.from && a.to == b.to &&
         a.scales == b.scales;
}

/// A trainer that does not hold the whole box where the piece looks for it.
std::optional<uint32_t> wrong_source(const World& world, const Piece& piece) {
  const uint64_t first = piece.source_offset;
  const Identity id = world.trainer_regions[piece.source].at(first);
  for (uint32_t rank = 0; rank < world.trainers.size(); ++rank) {
    const auto& region = world.trainer_regions[rank];
    if (first >= region.size() || region[first] != id) return rank;
  }
  return std::nullopt;
}

/// One way to spoil a plan at piece `at`; false when it cannot be done there.
struct Mutation {
  std::string name;
  std::function<bool(const World&, Plan&, size_t at)> spoil;
};

/// A mutation of the scales of the first piece that has some, from `at` on.
Mutation rescale(const std::string& name,
                 std::function<void(std::optional<ScalePlace>& scales)> spoil) {
  return {name, [spoil](const World&, Plan& plan, size_t at) {
            for (size_t i = at; i < plan.pieces.size(); ++i) {
              if (!plan.pieces[i].scales) continue;
              spoil(plan.pieces[i].scales);
              return true;
            }
            return false;
          }};
}

/// A mutation of the piece itself that is always possible.
Mutation change(const std::string& name, std::function<void(const World&, Piece&)> spoil) {
  return {name, [spoil](const World& world, Plan& plan, size_t at) {
            spoil(world, plan.pieces[at]);
            return true;
          }};
}

std::vector<Mutation> mutations() {
  return {
      {"dropped",
       [](const World&, Plan& plan, size_t at) {
         plan.pieces.erase(plan.pieces.begin() + static_cast<ptrdiff_t>(at));
         return true;
       }},
      {"duplicated",
       [](const World&, Plan& plan, size_t at) {
         plan.pieces.push_back(plan.pieces[at]);
         return true;
       }},
      {"from a trainer without it",
       [](const World& world, Plan& plan, size_t at) {
         const auto source = wrong_source(world, plan.pieces[at]);
         plan.pieces[at].source = source.value_or(0);
         return source.has_value();
       }},
      {"one row shorter",
       [](const World&, Plan& plan, size_t at) {
         --plan.pieces[at].box.rows.end;
         return !plan.pieces[at].box.empty();
       }},
      {"of another tensor of the same shape",
       [](const World& world, Plan& plan, size_t at) {
         Piece& piece = plan.pieces[at];
         const auto& tensors = world.catalogue.tensors();
         for (uint32_t other = 0; other < tensors.size(); ++other) {
           if (other == piece.tensor || tensors[other].rows != tensors[piece.tensor].rows ||
               tensors[other].cols != tensors[piece.tensor].cols) {
             continue;
           }
           piece.tensor = other;
           return true;
         }
         return false;
       }},
      change("enlarged by a row", [](const World&, Piece& p) { ++p.box.rows.end; }),
      change("enlarged by a column",
             [](const World& world, Piece& p) {
               ++p.box.cols.end;
               p.row_bytes += world.element();
             }),
      change("with its box moved",
             [](const World&, Piece& p) {
               ++p.box.rows.begin;
               ++p.box.rows.end;
             }),
      change("with longer rows", [](const World& w, Piece& p) { p.row_bytes += w.element(); }),
      change("read elsewhere", [](const World& w, Piece& p) { p.source_offset += w.element(); }),
      change("written elsewhere", [](const World& w, Piece& p) { p.target_offset += w.element(); }),
      change("read at another stride",
             [](const World& w, Piece& p) { p.source_stride += w.element(); }),
      change("written at another stride",
             [](const World& w, Piece& p) { p.target_stride += w.element(); }),
      change("converted from another dtype",
             [](const World&, Piece& p) {
               p.from = p.from == DType::kBf16 ? DType::kF16 : DType::kBf16;
             }),
      change(
          "converted to another dtype",
          [](const World&, Piece& p) { p.to = p.to == DType::kBf16 ? DType::kF16 : DType::kBf16; }),
      {"scaled without need",
       [](const World&, Plan& plan, size_t at) {
         if (plan.pieces[at].scales) return false;
         plan.pieces[at].scales = ScalePlace{.row_stride = 1, .block = 1};
         return true;
       }},
      rescale("without scales", [](auto& scales) { scales.reset(); }),
      rescale("scaled by the next scale", [](auto& s) { s->offset_bytes += sizeof(float); }),
      rescale("scaled in wider rows", [](auto& s) { ++s->row_stride; }),
      rescale("scaled in larger blocks", [](auto& s) { ++s->block; }),
      rescale("scaled a row too far", [](auto& s) { ++s->row_in_block; }),
      rescale("scaled a column too far", [](auto& s) { ++s->col_in_block; }),
  };
}

/// A model whose tensors all have the sizes that the placement tests need.
ModelConfig plain_model() {
  ModelConfig config;
  config.layers = 4;
  config.hidden = 8;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 2;
  config.intermediate = 16;
  config.vocab = 256;
  return config;
}

World plain_world(const EngineCase& trainer, const EngineCase& inference,
                  const Placement& placement) {
  World world(plain_model());
  world.trainer_engine = trainer;
  world.inference_engine = inference;
  world.placement = placement;
  fill_layouts(world, static_cast<uint32_t>(placement.trainer_device.size()),
               static_cast<uint32_t>(placement.inference_device.size()));
  return world;
}

}  // namespace

TEST_CASE("random plans bring every element once, by the shortest way") {
  Dice dice(11);
  int both_split = 0;
  int converted = 0;
  int quantised = 0;
  for (int round = 0; round < random_cases(1500); ++round) {
    CAPTURE(round);
    const auto world = random_world(dice);
    both_split += world->trainer_engine.engine != "hf" && world->inference_engine.engine != "hf";
    converted += world->inference_engine.options.count("dtype") > 0;
    quantised += scale_block(world->inference_engine) > 0;
    check_plan(*world);
  }
  CHECK(both_split > random_cases(500));
  CHECK(converted > random_cases(375));
  CHECK(quantised > random_cases(150));
}

TEST_CASE("pieces cut for messages bring the same elements, with their scales") {
  Dice dice(16);
  int quantised = 0;
  for (int round = 0; round < random_cases(300); ++round) {
    CAPTURE(round);
    const auto world = random_world(dice);
    CAPTURE(world->text());
    quantised += scale_block(world->inference_engine) > 0;
    const Plan plan = world->plan();
    const uint64_t staging_bytes = kPackAlignment * dice.between(6, 48);
    Execution execution(*world);
    for (uint32_t rank = 0; rank < world->inference.size(); ++rank) {
      for (const Round& step :
           make_rounds(exchanged_copies(plan, world->placement, rank), staging_bytes)) {
        for (const PackedMessage& message : step.receives) {
          for (const PackedPart& part : message.parts) {
            const std::string wrong = execution.carry_out(part.copy);
            REQUIRE_MESSAGE(wrong.empty(), wrong);
          }
        }
      }
    }
    for (const Piece& piece : plan.pieces) {
      if (piece.near != Near::kDevice) continue;
      const std::string wrong = execution.carry_out(piece);
      REQUIRE_MESSAGE(wrong.empty(), wrong);
    }
    CHECK(execution.incomplete() == "");
  }
  CHECK(quantised >= random_cases(20));
}

TEST_CASE("random plans between roles that are not, or only in part, on the same devices") {
  Dice dice(12);
  for (int round = 0; round < random_cases(750); ++round) {
    CAPTURE(round);
    check_plan(*random_world(dice, false));
  }
}

TEST_CASE("boxes that cross in rows and columns are cut into what is left of them") {
  Dice dice(15);
  for (int round = 0; round < random_cases(1000); ++round) {
    CAPTURE(round);
    check_plan(*random_tiles(dice));
  }
}

TEST_CASE("planning twice gives the same plan") {
  Dice dice(13);
  for (int round = 0; round < 50; ++round) {
    const auto world = random_world(dice);
    const Plan one = world->plan();
    const Plan two = world->plan();
    CHECK(std::equal(one.pieces.begin(), one.pieces.end(), two.pieces.begin(), two.pieces.end(),
                     same_piece));
  }
}

TEST_CASE("the proof rejects every spoilt plan") {
  Dice dice(14);
  std::map<std::string, int> tried;
  for (int round = 0; round < 200; ++round) {
    const auto world = random_world(dice);
    CAPTURE(world->text());
    const Plan plan = world->plan();
    for (const Mutation& mutation : mutations()) {
      CAPTURE(mutation.name);
      Plan spoilt = plan;
      if (!mutation.spoil(*world, spoilt, dice.below(plan.pieces.size()))) continue;
      ++tried[mutation.name];
      CHECK_THROWS_AS(prove_plan(spoilt, world->catalogue, world->trainers, world->inference),
                      Error);
    }
  }
  for (const Mutation& mutation : mutations()) {
    CAPTURE(mutation.name);
    CHECK(tried[mutation.name] >= 20);
  }
}

TEST_CASE("two pieces that change places are rejected") {
  const World world =
      plain_world({"megatron", 2}, {"sglang", 4}, {{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 0, 0, 0}});
  Plan plan = world.plan();
  const auto swap_partner = [&](const Piece& piece) {
    return std::find_if(plan.pieces.begin(), plan.pieces.end(), [&](const Piece& other) {
      return !same_piece(piece, other) && other.target == piece.target &&
             other.tensor != piece.tensor && other.row_bytes == piece.row_bytes &&
             other.box.rows.size() == piece.box.rows.size();
    });
  };
  const auto first = std::find_if(plan.pieces.begin(), plan.pieces.end(), [&](const Piece& piece) {
    return swap_partner(piece) != plan.pieces.end();
  });
  REQUIRE(first != plan.pieces.end());
  std::swap(first->target_offset, swap_partner(*first)->target_offset);
  CHECK_THROWS_AS(prove_plan(plan, world.catalogue, world.trainers, world.inference), Error);
}

TEST_CASE("pieces that add up but overlap or lie beyond their shard are rejected") {
  const World world = plain_world({"hf"}, {"hf"}, {{0}, {0}, {0}});
  Plan plan = world.plan();
  const auto tall = std::find_if(plan.pieces.begin(), plan.pieces.end(),
                                 [](const Piece& piece) { return piece.box.rows.size() >= 4; });
  REQUIRE(tall != plan.pieces.end());
  Piece upper = *tall;
  Piece lower = *tall;
  upper.box.rows.end = lower.box.rows.begin = tall->box.rows.begin + 2;
  lower.source_offset += 2 * lower.source_stride;
  lower.target_offset += 2 * lower.target_stride;
  plan.pieces.erase(tall);
  const auto prove = [&](Piece a, uint64_t a_end, Piece b, uint64_t b_end) {
    a.box.rows.end = a_end;
    b.box.rows.end = b_end;
    Plan cut = plan;
    cut.pieces.push_back(a);
    cut.pieces.push_back(b);
    prove_plan(cut, world.catalogue, world.trainers, world.inference);
  };
  const uint64_t middle = upper.box.rows.end;
  const uint64_t end = lower.box.rows.end;
  CHECK_NOTHROW(prove(upper, middle, lower, end));
  CHECK_THROWS_AS(prove(upper, middle + 1, lower, end - 1), Error);
  CHECK_THROWS_AS(prove(upper, middle - 1, lower, end + 1), Error);
}

TEST_CASE("the same layout on the same devices moves nothing between devices") {
  const World world = plain_world({"hf"}, {"hf"}, {{2, 0, 1}, {0, 1, 2}, {0, 0, 1}});
  check_plan(world);
  const Plan plan = world.plan();
  CHECK(plan.remote_bytes == 0);
  CHECK(plan.local_bytes == 3 * world.catalogue.bytes());
}

TEST_CASE("equally near replicas share the sending") {
  // Four whole trainers on one node, four whole inference ranks on another: no source is nearer.
  const World world =
      plain_world({"hf"}, {"hf"}, {{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 0, 0, 0, 1, 1, 1, 1}});
  check_plan(world);
  std::map<uint32_t, uint64_t> sent;
  const Plan plan = world.plan();
  for (const Piece& piece : plan.pieces) sent[piece.source] += piece.bytes();
  CHECK(plan.local_bytes == 0);
  REQUIRE(sent.size() == 4);
  for (const auto& [source, bytes] : sent) {
    CAPTURE(source);
    CHECK(bytes < plan.remote_bytes / 2);
  }
}

TEST_CASE("trainers that do not hold the whole model are refused, and the tensor is named") {
  World world = plain_world({"megatron", 2}, {"sglang", 2}, {{0, 1}, {0, 1}, {0, 0}});
  const Shard lost = world.trainers[1].shards.back();
  world.trainers[1].shards.pop_back();
  try {
    (void)world.plan();
    FAIL("planned without a source");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRuntime);
    const std::string text = error.what();
    CHECK_MESSAGE(text.find(world.catalogue.tensors().at(lost.tensor).name) != std::string::npos,
                  text);
  }
}

TEST_CASE("replicas of tensors are counted over the role") {
  const World world =
      plain_world({"megatron", 2}, {"sglang", 8},
                  {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 0, 0, 0, 0, 0, 0, 0}});
  const auto check_replicas = [&](const std::vector<RankLayout>& ranks,
                                  const std::vector<std::vector<Identity>>& regions) {
    std::vector<uint64_t> elements(world.catalogue.tensors().size(), 0);
    for (const auto& region : regions) {
      for (const Identity id : region) {
        if (id != kPadding && id != kRest) ++elements.at(tensor_of(id));
      }
    }
    const auto replicas =
        RoleShards(world.catalogue, GivenLayout(ranks)).replicas_of_tensors(world.catalogue);
    REQUIRE(replicas.size() == elements.size());
    for (size_t tensor = 0; tensor < replicas.size(); ++tensor) {
      CAPTURE(world.catalogue.tensors()[tensor].name);
      CHECK(replicas[tensor] * world.catalogue.tensors()[tensor].elements() == elements[tensor]);
    }
  };
  check_replicas(world.trainers, world.trainer_regions);
  check_replicas(world.inference, world.inference_regions);
}

}  // namespace awex::test
