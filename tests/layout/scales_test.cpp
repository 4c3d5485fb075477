// What inference holds of a model, and what trainers compute for it: dtypes, scales, and the blocks
// that several shards touch.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/layout_text.hpp"
#include "layout/trainer_scales.hpp"
#include "model/presets.hpp"
#include "support/oracle_writer.hpp"
#include "support/random_model.hpp"

namespace awex::test {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.layers = 1;
  config.hidden = 8;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 2;
  config.intermediate = 16;
  config.vocab = 256;
  return config;
}

/// A trainer with scales, with all that it refers to.
struct ScaledTrainer {
  ScaledTrainer(const ModelConfig& config, const std::string& trainer, const std::string& inference,
                uint32_t ranks)
      : model(make_catalogue("scaled", config)),
        held(held_catalogue(inference, model)),
        layout(with_scales(make_trainer_layout(trainer, model, ranks), held)) {}

  Catalogue model;
  Catalogue held;
  std::unique_ptr<Layout> layout;
};

/// The blocks that some shard has elements of, but not all, found element by element.
std::vector<BlockId> blocks_in_part(const Layout& layout, const Catalogue& held) {
  std::set<BlockId> found;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    for (const Shard& shard : layout.rank_layout(rank).shards) {
      const TensorInfo& info = held.tensors()[shard.tensor];
      if (!info.scaling) continue;
      const uint64_t block = info.scaling->block;
      std::set<BlockId> held_some;
      std::set<BlockId> lacks_some;
      for (uint64_t row = 0; row < info.rows; ++row) {
        for (uint64_t col = 0; col < info.cols; ++col) {
          const BlockId id{shard.tensor, static_cast<uint32_t>(row / block),
                           static_cast<uint32_t>(col / block)};
          const bool mine = !intersect(shard.box, {{row, row + 1}, {col, col + 1}}).empty();
          (mine ? held_some : lacks_some).insert(id);
        }
      }
      std::set_intersection(held_some.begin(), held_some.end(), lacks_some.begin(),
                            lacks_some.end(), std::inserter(found, found.end()));
    }
  }
  return {found.begin(), found.end()};
}

}  // namespace

TEST_CASE("what inference holds has the dtypes of the rules, and scales behind it") {
  Dice dice(41);
  std::map<std::string, int> seen;
  for (int round = 0; round < random_cases(500); ++round) {
    CAPTURE(round);
    const ModelConfig config = random_model(dice);
    const Catalogue model = make_catalogue("random", config);
    const EngineCase engine = any_inference(dice, model);
    CAPTURE(engine.spec());
    const Catalogue held = held_catalogue(engine.spec(), model);
    const bool converts = std::any_of(held.tensors().begin(), held.tensors().end(),
                                      [](const auto& t) { return t.trainer_dtype.has_value(); });
    CHECK(converts == (held.fingerprint() != model.fingerprint()));
    REQUIRE(model_tensors(held) == model.tensors().size());
    const uint64_t block = scale_block(engine);
    uint32_t scales = model_tensors(held);
    for (uint32_t i = 0; i < model_tensors(held); ++i) {
      const TensorInfo& tensor = held.tensors()[i];
      CAPTURE(tensor.name);
      CHECK(tensor.name == model.tensors()[i].name);
      CHECK(tensor.dtype == expected_dtype(config, tensor.name, engine));
      CHECK(tensor.source_dtype() == expected_dtype(config, tensor.name));
      REQUIRE(tensor.scaling.has_value() == (tensor.dtype == DType::kF8E4M3));
      ++seen[std::string(dtype_name(tensor.dtype))];
      if (!tensor.scaling) continue;
      REQUIRE(tensor.scaling->scales == scales);
      CHECK(tensor.scaling->block == block);
      const TensorInfo& its = held.tensors().at(scales++);
      CHECK(its.name == tensor.name + "_scale_inv");
      CHECK(its.dtype == DType::kF32);
      CHECK(its.rows * block >= tensor.rows);
      CHECK(its.rows * block < tensor.rows + block);
      CHECK(its.cols * block >= tensor.cols);
      CHECK(its.cols * block < tensor.cols + block);
    }
    CHECK(scales == held.tensors().size());
  }
  CHECK(seen.size() == 4);
}

TEST_CASE("published models have the scales of their quantised checkpoints") {
  const Catalogue held =
      held_catalogue("sglang:dtype=fp8", make_catalogue("v3", preset_config("deepseek-v3")));
  const auto shape = [&](const std::string& name) {
    const TensorInfo& tensor = held.tensors()[held.index_of("model.layers.3." + name)];
    return fmt::format("{} {}x{}", dtype_name(tensor.dtype), tensor.rows, tensor.cols);
  };
  CHECK(shape("self_attn.kv_a_proj_with_mqa.weight") == "F8_E4M3 576x7168");
  CHECK(shape("self_attn.kv_a_proj_with_mqa.weight_scale_inv") == "F32 5x56");
  CHECK(shape("mlp.experts.255.down_proj.weight_scale_inv") == "F32 56x16");
  CHECK(shape("mlp.shared_experts.up_proj.weight_scale_inv") == "F32 16x56");
  CHECK(shape("mlp.gate.weight") == "BF16 256x7168");
  CHECK(shape("mlp.gate.e_score_correction_bias") == "F32 256x1");
  CHECK_FALSE(held.find("lm_head.weight_scale_inv"));
  CHECK_FALSE(held.find("model.layers.3.mlp.gate.weight_scale_inv"));
}

TEST_CASE("scales of fused parameters stand as their weights do") {
  const std::string spec = "vllm:tp=2,deep_gemm=off,dtype=fp8,router_dtype=fp32,block=4";
  ModelConfig config = small_config();
  config.family = "qwen3_moe";
  config.hidden = 6;
  config.experts = 2;
  config.experts_per_token = 1;
  config.moe_intermediate = 16;
  const Catalogue held = held_catalogue(spec, make_catalogue("moe", config));
  const auto layout = make_inference_layout(spec, held, 2);
  CHECK(layout->describe() == spec);
  const RankLayout rank = layout->rank_layout(1);
  CHECK(content_of(rank, held, "model.layers.0.self_attn.qkv_proj.weight_scale_inv") ==
        "4x2: 0.self_attn.q_proj.weight_scale_inv[2:4,0:2]#0 "
        "0.self_attn.k_proj.weight_scale_inv[1:2,0:2]#0 "
        "0.self_attn.v_proj.weight_scale_inv[1:2,0:2]#0");
  CHECK(content_of(rank, held, "model.layers.0.mlp.experts.routed_experts.w2_weight_scale_inv") ==
        "4x2: 0.mlp.experts.0.down_proj.weight_scale_inv[0:2,2:4]#0 "
        "0.mlp.experts.1.down_proj.weight_scale_inv[0:2,2:4]#0");
  CHECK(held.tensors()[held.index_of("model.layers.0.mlp.gate.weight")].dtype == DType::kF32);
  CHECK(wrong_cover(*layout, held) == "");
}

TEST_CASE("dtypes that make no sense are refused, and what cuts a block is named") {
  ModelConfig config = small_config();
  config.family = "qwen3";
  const Catalogue model = make_catalogue("small", config);
  const auto refuse = [&](const std::string& spec, const std::vector<std::string>& words) {
    CAPTURE(spec);
    check_request_refused(
        [&] {
          const Catalogue held = held_catalogue(spec, model);
          (void)make_inference_layout(spec, held, 8);
        },
        words);
  };
  refuse("sglang:dtype=fp9", {"fp9", "fp8"});
  refuse("sglang:dtype=bf16,block=4", {"block=4", "dtype=fp8"});
  refuse("vllm:router_dtype=fp8", {"router_dtype", "bf16"});
  refuse("sglang:dtype=fp8,block=0", {"block=0"});
  refuse("hf:router_dtype=bf16", {"router_dtype"});
  refuse("hf:tp=2,dtype=fp8", {"tp"});
  refuse("sglang:tp=4,keeps_fp8=on,dtype=fp8,block=4",
         {"tp cuts", "k_proj.weight", "row 2", "block=4"});
  refuse("sglang:tp=4,attn_dp=2,keeps_fp8=on,dtype=fp8,block=8",
         {"tp/attn_dp", "k_proj.weight", "row 4"});
  refuse("sglang:keeps_fp8=on,dtype=fp8,block=12", {"k_proj.weight", "row 16", "block"});
  check_request_refused([&] { (void)make_trainer_layout("hf:dtype=fp8", model, 1); }, {"dtype"});
}

TEST_CASE("each remedy for cut blocks leads to the next refusal, and the last to a layout") {
  const auto follow = [](std::string spec, const Catalogue& model,
                         const std::vector<std::pair<std::string, std::string>>& remedies) {
    for (const auto& [remedy, option] : remedies) {
      CAPTURE(spec);
      check_request_refused(
          [&] { (void)make_inference_layout(spec, held_catalogue(spec, model), 6); }, {remedy});
      spec += option;
    }
    CAPTURE(spec);
    const Catalogue held = held_catalogue(spec, model);
    CHECK_NOTHROW((void)make_inference_layout(spec, held, 6));
  };
  ModelConfig config = preset_config("tiny-mla");
  config.layers = 2;
  const Catalogue model = make_catalogue("tiny-mla", config);
  follow("sglang:tp=3,keeps_fp8=on,dtype=fp8,block=12", model,
         {{"dense_mlp=replicated", ",dense_mlp=replicated"},
          {"a larger ep", ",ep=3"},
          {"shared_experts=replicated", ",shared_experts=replicated"}});
  follow("vllm:tp=2,dtype=fp8,block=16", model,
         {{"deep_gemm=off", ",deep_gemm=off"},
          {"ep=on", ",ep=on"},
          {"moe_backend=triton", ",moe_backend=triton"},
          {"shared_experts=replicated", ",shared_experts=replicated"}});
}

TEST_CASE("a layout is refused the catalogue of other rules") {
  const Catalogue model = make_catalogue("small", small_config());
  CHECK_THROWS_AS((void)make_inference_layout("hf:dtype=fp8", model, 1), Error);
  const Catalogue held = held_catalogue("hf:dtype=fp8,block=4", model);
  CHECK_THROWS_AS((void)make_inference_layout("hf", held, 1), Error);
  CHECK_THROWS_AS((void)make_inference_layout("hf:dtype=fp8,block=8", held, 1), Error);
  CHECK_NOTHROW((void)make_inference_layout("hf:dtype=fp8,block=4", held, 1));
}

TEST_CASE("a trainer's scales stand behind its weights, which keep their places") {
  Dice dice(42);
  size_t scaled = 0;
  for (int round = 0; round < random_cases(500); ++round) {
    CAPTURE(round);
    const ModelConfig config = random_model(dice);
    const Catalogue model = make_catalogue("random", config);
    const auto ranks = static_cast<uint32_t>(dice.one_of({1, 2, 3, 4, 6, 8}));
    const std::string spec = random_engine(dice, any_trainer, model, ranks).spec();
    CAPTURE(spec);
    const uint64_t block = dice.between(1, 9);
    const Catalogue held = held_catalogue(fmt::format("hf:dtype=fp8,block={}", block), model);
    const auto base = make_trainer_layout(spec, model, ranks);
    const auto layout = with_scales(make_trainer_layout(spec, model, ranks), held);
    CHECK(layout->describe() == base->describe());
    CHECK(wrong_cover(*layout, held) == "");
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const RankLayout before = base->rank_layout(rank);
      const RankLayout after = layout->rank_layout(rank);
      CHECK(after.bytes % kParameterAlignment == 0);
      CHECK(std::equal(before.parameters.begin(), before.parameters.end(), after.parameters.begin(),
                       [](const Parameter& a, const Parameter& b) {
                         return a.name == b.name && a.offset_bytes == b.offset_bytes &&
                                a.bytes() == b.bytes();
                       }));
      // The oracle finds no place that two blocks share, and what is owned where it is touched.
      const auto touched = expected_scales(after, held, block, false);
      for (const auto& [at, scale] : touched) {
        CHECK(at >= before.bytes);
        CHECK(at + sizeof(float) <= after.bytes);
        CHECK(at % sizeof(float) == 0);
      }
      std::map<uint64_t, Identity> owned;
      for (size_t i = before.shards.size(); i < after.shards.size(); ++i) {
        const Shard& shard = after.shards[i];
        const TensorInfo& info = held.tensors()[shard.tensor];
        for (uint64_t row = 0; row < shard.box.rows.size(); ++row) {
          for (uint64_t col = 0; col < shard.box.cols.size(); ++col) {
            owned[shard.offset_bytes + (row * shard.row_stride + col) * sizeof(float)] =
                identity_of(shard.tensor,
                            (shard.box.rows.begin + row) * info.cols + shard.box.cols.begin + col);
          }
        }
      }
      CHECK(owned == expected_scales(after, held, block, true));
      scaled += touched.size();
    }
  }
  CHECK(scaled > 0);
}

TEST_CASE("without anything quantised a trainer is what it was") {
  const ScaledTrainer trainer(small_config(), "megatron:tp=2", "sglang:dtype=fp16", 2);
  CHECK(trainer.layout->rank_layout(1).shards.size() ==
        make_trainer_layout("megatron:tp=2", trainer.model, 2)->rank_layout(1).shards.size());
  CHECK(shared_blocks(*trainer.layout, trainer.held).empty());
}

TEST_CASE("blocks that shards hold in part are listed, and where ranks keep their scales") {
  Dice dice(43);
  size_t shared_in_all = 0;
  size_t without = 0;
  for (int round = 0; round < random_cases(200); ++round) {
    CAPTURE(round);
    const ModelConfig config = random_model(dice);
    const auto ranks = static_cast<uint32_t>(dice.one_of({1, 2, 3, 4, 6}));
    const Catalogue model = make_catalogue("random", config);
    const std::string spec = random_engine(dice, any_trainer, model, ranks).spec();
    CAPTURE(spec);
    const uint64_t block = dice.between(1, 5);
    const ScaledTrainer trainer(config, spec, fmt::format("hf:dtype=fp8,block={}", block), ranks);
    const auto shared = shared_blocks(*trainer.layout, trainer.held);
    CHECK(shared == blocks_in_part(*trainer.layout, trainer.held));
    shared_in_all += shared.size();
    const auto scale_of = [&](const BlockId& id) {
      const uint32_t scales = trainer.held.tensors()[id.tensor].scaling->scales;
      return identity_of(scales, id.row * trainer.held.tensors()[scales].cols + id.col);
    };
    without += shared.empty() ? 1 : 0;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const RankLayout layout = trainer.layout->rank_layout(rank);
      std::map<uint64_t, Identity> got;
      for (const auto& [index, at] : shared_scales(layout, trainer.held, shared)) {
        CHECK(got.emplace(at, scale_of(shared.at(index))).second);
      }
      std::map<uint64_t, Identity> want;
      std::set<Identity> wanted;
      for (const BlockId& id : shared) wanted.insert(scale_of(id));
      for (const auto& [at, scale] : expected_scales(layout, trainer.held, block, false)) {
        if (wanted.count(scale) > 0) want[at] = scale;
      }
      CHECK(got == want);
    }
  }
  CHECK(shared_in_all > 0);
  CHECK(without > 0);
}

TEST_CASE("what trainers compute scales of is where their weights are") {
  const ScaledTrainer trainer(small_config(), "megatron:tp=2", "hf:dtype=fp8,block=4", 2);
  const RankLayout rank = trainer.layout->rank_layout(1);
  const auto scaled = scaled_shards(rank, trainer.held);
  CHECK_FALSE(scaled.empty());
  size_t at = 0;
  for (const Shard& shard : rank.shards) {
    if (!trainer.held.tensors()[shard.tensor].scaling) continue;
    const ScaledShard& one = scaled.at(at++);
    CHECK(one.tensor == shard.tensor);
    CHECK(one.dtype == DType::kBf16);
    CHECK(one.box == shard.box);
    CHECK(one.offset_bytes == shard.offset_bytes);
    CHECK(one.row_stride == shard.row_stride);
    CHECK(one.scales.offset_bytes == shard.scales->offset_bytes);
    CHECK(one.scales.row_in_block == shard.box.rows.begin % 4);
    CHECK(one.scales.col_in_block == shard.box.cols.begin % 4);
  }
  CHECK(at == scaled.size());
}

}  // namespace awex::test
