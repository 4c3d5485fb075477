// FSDP's layouts against what was worked out by hand.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "layout/engines.hpp"
#include "layout_text.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

/// Rows: 10 of the vocabulary, 4 and 2 of queries and keys, 8 of the MLP; hidden is 5.
ModelConfig small_config() {
  ModelConfig config;
  config.family = "qwen3";
  config.qk_norm = true;
  config.layers = 1;
  config.hidden = 5;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 1;
  config.intermediate = 8;
  config.vocab = 10;
  return config;
}

std::vector<std::string> contents(const Layout& layout, const Catalogue& catalogue,
                                  const std::string& name) {
  std::vector<std::string> all;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    all.push_back(content_of(layout.rank_layout(rank), catalogue, name));
  }
  return all;
}

}  // namespace

TEST_CASE("rows are cut as torch.chunk cuts, with short and empty chunks at the end") {
  const Catalogue catalogue = make_catalogue("small", small_config());
  const auto layout = make_trainer_layout("fsdp:shard=4", catalogue, 4);
  using Texts = std::vector<std::string>;
  CHECK(contents(*layout, catalogue, "lm_head.weight") ==
        Texts{"3x5: lm_head[0:3,0:5]#0", "3x5: lm_head[3:6,0:5]#0", "3x5: lm_head[6:9,0:5]#0",
              "1x5: lm_head[9:10,0:5]#0"});
  CHECK(contents(*layout, catalogue, "model.norm.weight") ==
        Texts{"2x1: model.norm[0:2,0:1]#0", "2x1: model.norm[2:4,0:1]#0",
              "1x1: model.norm[4:5,0:1]#0", "no model.norm.weight"});
  const std::string q_norm = "model.layers.0.self_attn.q_norm.weight";
  CHECK(contents(*layout, catalogue, q_norm) == Texts{"1x1: 0.self_attn.q_norm[0:1,0:1]#0",
                                                      "no " + q_norm, "no " + q_norm,
                                                      "no " + q_norm});
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("tensor parallel ranks split by role, whatever a tensor is called") {
  auto config = small_config();
  config.family = "mixtral";
  config.qk_norm = false;
  config.experts = 1;
  config.experts_per_token = 1;
  config.moe_intermediate = 8;
  using Texts = std::vector<std::string>;
  const Catalogue mixtral = make_catalogue("mixtral", config);
  const auto experts = make_trainer_layout("fsdp:tp=2", mixtral, 2);
  const std::string moe = "model.layers.0.block_sparse_moe.";
  const std::string text = "0.block_sparse_moe.";
  CHECK(contents(*experts, mixtral, moe + "experts.0.w3.weight") ==
        Texts{"4x5: " + text + "experts.0.w3[0:4,0:5]#0",
              "4x5: " + text + "experts.0.w3[4:8,0:5]#0"});
  CHECK(contents(*experts, mixtral, moe + "experts.0.w2.weight") ==
        Texts{"5x4: " + text + "experts.0.w2[0:5,0:4]#0",
              "5x4: " + text + "experts.0.w2[0:5,4:8]#0"});
  CHECK(contents(*experts, mixtral, moe + "gate.weight") ==
        Texts{"1x5: " + text + "gate[0:1,0:5]#0", "1x5: " + text + "gate[0:1,0:5]#1"});
  config.family = "seed_oss";
  config.experts = 0;
  config.attention_out_bias = true;
  const Catalogue seed = make_catalogue("seed", config);
  const std::string bias = "model.layers.0.self_attn.o_proj.bias";
  CHECK(
      contents(*make_trainer_layout("fsdp:tp=2", seed, 2), seed, bias) ==
      Texts{"5x1: 0.self_attn.o_proj.bias[0:5,0:1]#0", "5x1: 0.self_attn.o_proj.bias[0:5,0:1]#1"});
}

TEST_CASE("replicas repeat the shards, slowest") {
  const Catalogue catalogue = make_catalogue("small", small_config());
  const auto layout = make_trainer_layout("fsdp:shard=2,replicate=2", catalogue, 4);
  CHECK(contents(*layout, catalogue, "lm_head.weight") ==
        std::vector<std::string>{"5x5: lm_head[0:5,0:5]#0", "5x5: lm_head[5:10,0:5]#0",
                                 "5x5: lm_head[0:5,0:5]#1", "5x5: lm_head[5:10,0:5]#1"});
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("tensor parallel ranks take their interval first") {
  const Catalogue catalogue = make_catalogue("small", small_config());
  // tp fastest: rank 3 is tp 1 of shard 1.
  const auto layout = make_trainer_layout("fsdp:shard=2,tp=2", catalogue, 8);
  const RankLayout rank = layout->rank_layout(3);
  CHECK(content_of(rank, catalogue, "model.embed_tokens.weight") ==
        "2x5: model.embed_tokens[8:10,0:5]#0");
  CHECK(content_of(rank, catalogue, "model.layers.0.self_attn.o_proj.weight") ==
        "2x2: 0.self_attn.o_proj[3:5,2:4]#0");
  CHECK(content_of(rank, catalogue, "model.layers.0.mlp.down_proj.weight") ==
        "2x4: 0.mlp.down_proj[3:5,4:8]#0");
  CHECK(content_of(rank, catalogue, "model.norm.weight") == "2x1: model.norm[3:5,0:1]#1");
  CHECK(content_of(layout->rank_layout(7), catalogue, "model.norm.weight") ==
        "2x1: model.norm[3:5,0:1]#3");
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("a vocabulary that does not divide is chunked by tensor parallel ranks as well") {
  auto config = small_config();
  config.vocab = 11;
  const Catalogue catalogue = make_catalogue("odd", config);
  const auto layout = make_trainer_layout("fsdp:shard=2,tp=2", catalogue, 4);
  CHECK(contents(*layout, catalogue, "lm_head.weight") ==
        std::vector<std::string>{"3x5: lm_head[0:3,0:5]#0", "3x5: lm_head[6:9,0:5]#0",
                                 "3x5: lm_head[3:6,0:5]#0", "2x5: lm_head[9:11,0:5]#0"});
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("all kinds of models are covered") {
  for (const std::string preset : {"tiny-dense-bias", "tiny-moe-tied", "tiny-mla", "tiny-glm"}) {
    CAPTURE(preset);
    const Catalogue catalogue = make_catalogue(preset, preset_config(preset));
    for (const std::string spec : {"fsdp", "fsdp:shard=3,tp=2", "fsdp:replicate=3,tp=1"}) {
      CAPTURE(spec);
      const auto layout = make_trainer_layout(spec, catalogue, 12);
      CHECK(wrong_cover(*layout, catalogue) == "");
    }
  }
}

TEST_CASE("the description has what was left open") {
  const Catalogue catalogue = make_catalogue("small", small_config());
  const auto describe = [&](const std::string& spec) {
    return make_trainer_layout(spec, catalogue, 8)->describe();
  };
  CHECK(describe("fsdp") == "fsdp:shard=8");
  CHECK(describe("fsdp:replicate=2") == "fsdp:shard=4,replicate=2");
  CHECK(describe("fsdp:tp=2,shard=2") == "fsdp:shard=2,replicate=2,tp=2");
}

TEST_CASE("worlds and models that do not divide are refused") {
  const Catalogue catalogue = make_catalogue("small", small_config());
  struct Wrong {
    std::string spec;
    uint32_t ranks;
    std::vector<std::string> words;
  };
  for (const Wrong& wrong : {Wrong{"shard=3", 8, {"8", "shard=3"}}, Wrong{"tp=3", 8, {"8", "tp=3"}},
                             Wrong{"replicate=3", 8, {"8", "replicate=3"}},
                             Wrong{"shard=2,replicate=2", 8, {"4", "8", "replicate=4"}},
                             Wrong{"tp=4", 8, {"num_key_value_heads = 2", "tp=4"}},
                             Wrong{"tp=8", 8, {"num_attention_heads = 4", "tp=8"}},
                             Wrong{"shards=8", 8, {"shards", "shard"}}}) {
    CAPTURE(wrong.spec);
    check_request_refused(
        [&] { (void)make_trainer_layout("fsdp:" + wrong.spec, catalogue, wrong.ranks); },
        wrong.words);
  }
}

}  // namespace awex::test
