// Megatron's layouts against what was worked out by hand.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "layout/engines.hpp"
#include "layout/megatron_pipeline.hpp"
#include "layout_text.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

/// Stages by " | ", chunks by " + "; E, N and L for embedding, final norm and output layer.
std::string pipeline_text(const std::string& spec, uint64_t layers) {
  const auto options = MegatronPipelineOptions::read(EngineSpec("megatron:" + spec));
  std::string text;
  for (const auto& stage : megatron_pipeline(options, layers)) {
    if (!text.empty()) text += " | ";
    for (size_t chunk = 0; chunk < stage.size(); ++chunk) {
      text +=
          fmt::format("{}{}{}:{}{}{}", chunk > 0 ? " + " : "", stage[chunk].embedding ? "E" : "",
                      stage[chunk].layers.begin, stage[chunk].layers.end,
                      stage[chunk].final_norm ? "N" : "", stage[chunk].head ? "L" : "");
    }
  }
  return text;
}

/// Two query heads a KV head of 3 elements: a query group is 12 rows, the fused QKV 24.
ModelConfig dense_config(uint64_t layers) {
  ModelConfig config;
  config.family = "qwen3";
  config.qk_norm = true;
  config.layers = layers;
  config.hidden = 5;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 3;
  config.intermediate = 8;
  config.vocab = 10;
  return config;
}

/// The first layer is dense, the second has four experts and two shared ones.
ModelConfig latent_config() {
  ModelConfig config;
  config.family = "deepseek_v3";
  config.layers = 2;
  config.hidden = 5;
  config.heads = 4;
  config.kv_heads = 4;
  config.q_lora_rank = 6;
  config.kv_lora_rank = 4;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 3;
  config.intermediate = 8;
  config.vocab = 128;
  config.experts = 4;
  config.experts_per_token = 1;
  config.moe_intermediate = 2;
  config.shared_experts = 2;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

/// Elements of all shards that are the first replica of theirs.
uint64_t first_replica_elements(const Layout& layout) {
  uint64_t elements = 0;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    for (const Shard& shard : layout.rank_layout(rank).shards) {
      if (shard.replica == 0) elements += shard.box.elements();
    }
  }
  return elements;
}

}  // namespace

TEST_CASE("layers are dealt out to pipeline stages") {
  CHECK(pipeline_text("tp=2", 3) == "E0:3NL");
  CHECK(pipeline_text("pp=4", 8) == "E0:2 | 2:4 | 4:6 | 6:8NL");
  CHECK(pipeline_text("pp=2,vpp=2", 8) == "E0:2 + 4:6 | 2:4 + 6:8NL");
  CHECK(pipeline_text("pp=3,first=1", 7) == "E0:1 | 1:4 | 4:7NL");
  CHECK(pipeline_text("pp=3,last=1", 7) == "E0:3 | 3:6 | 6:7NL");
  CHECK(pipeline_text("pp=4,first=2,last=4", 10) == "E0:2 | 2:4 | 4:6 | 6:10NL");
  CHECK(pipeline_text("pp=2,first=1,last=2", 3) == "E0:1 | 1:3NL");
  CHECK(pipeline_text("pp=3,vpp=2,first=2,last=4", 10) == "E0:1 + 5:6 | 1:3 + 6:8 | 3:5 + 8:10NL");
  CHECK(pipeline_text("pp=4,account_for_embedding=on,account_for_loss=on", 6) ==
        "E0:1 | 1:3 | 3:5 | 5:6NL");
  CHECK(pipeline_text("pp=2,vpp=2,account_for_embedding=on", 7) == "E0:1 + 3:5 | 1:3 + 5:7NL");
  CHECK(pipeline_text("pp=2,account_for_loss=on", 1) == "E0:1 | 1:1NL");
  CHECK(pipeline_text("pp=16,last=1", 61).ends_with(" | 52:56 | 56:60 | 60:61NL"));
}

TEST_CASE("pipeline layouts are read as Megatron writes them") {
  CHECK(pipeline_text("pp=2,layout=Et|ttL", 3) == "E0:1 | 1:3NL");
  CHECK(pipeline_text("pp=5,layout=Ettt|(tt|)*2,t|L", 8) == "E0:3 | 3:5 | 5:7 | 7:8 | 8:8NL");
  CHECK(pipeline_text("pp=2,layout=Et|t*2|(t)*3|tL", 7) == "E0:1 + 3:6 | 1:3 + 6:7NL");
  CHECK(pipeline_text("pp=2,vpp=2,layout=E|t|t|L", 2) == "E0:0 + 1:2 | 0:1 + 2:2NL");
  CHECK(pipeline_text("pp=2,layout=E,t,t|t,L,vpp=1", 3) == "E0:2 | 2:3NL");
  CHECK(pipeline_text("pp=2,layout=E(t*2|t)*1L", 3) == "E0:2 | 2:3NL");
  // The final norm stays with the last layer when MTP layers come behind it.
  CHECK(pipeline_text("pp=4,layout=Ett|tt|m|L", 4) == "E0:2 | 2:4N | 4:4 | 4:4L");
  CHECK(pipeline_text("pp=2,layout=Ett|ttmL", 4) == "E0:2 | 2:4NL");
}

TEST_CASE("pipelines that cannot be are refused with what is wrong") {
  struct Wrong {
    std::string spec;
    std::vector<std::string> words;
  };
  for (const Wrong& wrong : {Wrong{"pp=3", {"num_hidden_layers = 8", "pp=3"}},
                             Wrong{"pp=2,vpp=3", {"vpp=3", "4"}},
                             Wrong{"vpp=2", {"vpp", "pp=1"}},
                             Wrong{"first=2", {"first", "pp=1"}},
                             Wrong{"pp=4,first=9", {"first=9", "8"}},
                             Wrong{"pp=4,first=1", {"first=1", "7", "3"}},
                             Wrong{"pp=2,first=3,last=4", {"first=3,last=4", "7", "8"}},
                             Wrong{"pp=4,account_for_loss=on", {"9", "pp=4"}},
                             Wrong{"pp=2,account_for_loss=yes", {"account_for_loss=yes", "on"}},
                             Wrong{"pp=2,first=4,account_for_loss=on", {"twice"}},
                             Wrong{"pp=2,first=4,layout=Et*4|t*4L", {"twice"}},
                             Wrong{"pp=2,layout=Et*4|t*5L", {"9", "8"}},
                             Wrong{"pp=3,layout=Et*4|t*4L", {"pp=3", "2"}},
                             Wrong{"pp=2,vpp=2,layout=Et*4|t*4L", {"vpp=2", "2"}},
                             Wrong{"pp=2,layout=t*4|t*4L", {"E"}},
                             Wrong{"pp=2,layout=Et*4|t*4", {"L"}},
                             Wrong{"pp=2,layout=Et*4|Et*4L", {"E"}},
                             Wrong{"pp=2,layout=Et*4|x*4L", {"'x'"}},
                             Wrong{"pp=2,layout=Et*4|m(t*4L", {"parenthesis"}},
                             Wrong{"pp=2,layout=Et*4m|t*4L", {"m"}},
                             Wrong{"pp=2,layout=Et*|t*4L", {"*"}},
                             Wrong{"pp=2,layout=Et*4|(t*99999)*99999L", {"places"}}}) {
    CAPTURE(wrong.spec);
    check_request_refused([&] { (void)pipeline_text(wrong.spec, 8); }, wrong.words);
  }
}

TEST_CASE("every chunk of virtual stages names its layers from 0") {
  const Catalogue catalogue = make_catalogue("dense", dense_config(4));
  const auto layout = make_trainer_layout("megatron:tp=2,pp=2,vpp=2", catalogue, 4);
  const RankLayout first = layout->rank_layout(1);
  const RankLayout last = layout->rank_layout(2);
  const std::string fc2 = "decoder.layers.0.mlp.linear_fc2.weight";
  CHECK(content_of(first, catalogue, fc2) == "5x4: 0.mlp.down_proj[0:5,4:8]#0");
  CHECK(content_of(first, catalogue, "chunk1." + fc2) == "5x4: 2.mlp.down_proj[0:5,4:8]#0");
  CHECK(content_of(last, catalogue, fc2) == "5x4: 1.mlp.down_proj[0:5,0:4]#0");
  CHECK(content_of(last, catalogue, "chunk1." + fc2) == "5x4: 3.mlp.down_proj[0:5,0:4]#0");
  CHECK(names_of(first).front() == "embedding.word_embeddings.weight");
  CHECK(names_of(first).back() == "chunk1." + fc2);
  CHECK(names_of(last).back() == "chunk1.output_layer.weight");
  CHECK(has_parameter(last, "chunk1.decoder.final_layernorm.weight"));
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("a tied embedding has a copy behind the last of several stages") {
  auto config = dense_config(2);
  config.tied_embeddings = true;
  const Catalogue catalogue = make_catalogue("tied", config);
  const auto alone = make_trainer_layout("megatron:pad_vocab=4", catalogue, 1);
  CHECK_FALSE(has_parameter(alone->rank_layout(0), "output_layer.weight"));
  CHECK(content_of(alone->rank_layout(0), catalogue, "embedding.word_embeddings.weight") ==
        "12x5: model.embed_tokens[0:10,0:5]#0");
  // Ranks of a stage: tp 0, tp 1 of the first replica, then of the second.
  const auto staged = make_trainer_layout("megatron:tp=2,pp=2,pad_vocab=4", catalogue, 8);
  CHECK(content_of(staged->rank_layout(1), catalogue, "embedding.word_embeddings.weight") ==
        "8x5: model.embed_tokens[8:10,0:5]#0");
  CHECK(content_of(staged->rank_layout(6), catalogue, "output_layer.weight") ==
        "8x5: model.embed_tokens[0:8,0:5]#3");
  CHECK(wrong_cover(*staged, catalogue) == "");
}

TEST_CASE("the vocabulary is padded as asked") {
  const Catalogue catalogue = make_catalogue("dense", dense_config(1));
  const auto rows = [&](const std::string& options) {
    const auto layout = make_trainer_layout("megatron:tp=2" + options, catalogue, 2);
    return layout->rank_layout(0).parameters.front().rows;
  };
  CHECK(rows("") == 128);
  CHECK(rows(",pad_with_tp=off") == 64);
  CHECK(rows(",pad_vocab=3") == 6);
  CHECK(rows(",pad_vocab=4,pad_with_tp=off") == 6);
  check_request_refused([&] { (void)rows(",pad_vocab=11,pad_with_tp=off"); },
                        {"padded vocabulary = 11", "tp=2"});
}

TEST_CASE("experts are spread over their own groups") {
  const Catalogue catalogue = make_catalogue("latent", latent_config());
  // Eight ranks: tp 4 x dp 2 for most, etp 2 x ep 2 x edp 2 for experts.
  const auto layout = make_trainer_layout("megatron:tp=4,ep=2,etp=2", catalogue, 8);
  const RankLayout rank = layout->rank_layout(7);  // tp 3, dp 1; etp 1, ep 1, edp 1
  const std::string mlp = "decoder.layers.1.mlp.";
  CHECK(content_of(rank, catalogue, mlp + "experts.linear_fc1.weight0") ==
        "2x5: 1.mlp.experts.2.gate_proj[1:2,0:5]#1 1.mlp.experts.2.up_proj[1:2,0:5]#1");
  CHECK(content_of(rank, catalogue, mlp + "experts.linear_fc2.weight1") ==
        "5x1: 1.mlp.experts.3.down_proj[0:5,1:2]#1");
  CHECK_FALSE(has_parameter(rank, mlp + "experts.linear_fc1.weight2"));
  CHECK(content_of(rank, catalogue, mlp + "router.weight") == "4x5: 1.mlp.gate[0:4,0:5]#7");
  CHECK(content_of(rank, catalogue, mlp + "router.expert_bias") ==
        "4x1: 1.mlp.gate.e_score_correction_bias[0:4,0:1]#7");
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("sequential experts are modules of their own") {
  const Catalogue catalogue = make_catalogue("latent", latent_config());
  const auto layout =
      make_trainer_layout("megatron:tp=2,ep=4,etp=1,experts=sequential,cp=2", catalogue, 8);
  const RankLayout rank = layout->rank_layout(3);  // tp 1, cp 1; ep 3, edp 0
  const std::string mlp = "decoder.layers.1.mlp.";
  CHECK(content_of(rank, catalogue, mlp + "experts.local_experts.0.linear_fc1.weight") ==
        "4x5: 1.mlp.experts.3.gate_proj[0:2,0:5]#0 1.mlp.experts.3.up_proj[0:2,0:5]#0");
  CHECK(content_of(rank, catalogue, mlp + "experts.local_experts.0.linear_fc2.weight") ==
        "5x2: 1.mlp.experts.3.down_proj[0:5,0:2]#0");
  CHECK(content_of(rank, catalogue, mlp + "shared_experts.linear_fc1.weight") ==
        "4x5: 1.mlp.shared_experts.gate_proj[2:4,0:5]#1 1.mlp.shared_experts.up_proj[2:4,0:5]#1");
  CHECK(content_of(rank, catalogue, mlp + "shared_experts.linear_fc2.weight") ==
        "5x2: 1.mlp.shared_experts.down_proj[0:5,2:4]#1");
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("latent attention under Transformer Engine") {
  const Catalogue catalogue = make_catalogue("latent", latent_config());
  const auto layout = make_trainer_layout("megatron:tp=2", catalogue, 2);
  const RankLayout rank = layout->rank_layout(1);
  const std::string attention = "decoder.layers.0.self_attention.";
  for (const auto& [name, content] : std::vector<std::pair<std::string, std::string>>{
           {"decoder.layers.0.input_layernorm.weight", "5x1: 0.input_layernorm[0:5,0:1]#1"},
           {attention + "linear_q_down_proj.weight", "6x5: 0.self_attn.q_a_proj[0:6,0:5]#1"},
           {attention + "linear_q_up_proj.layer_norm_weight",
            "6x1: 0.self_attn.q_a_layernorm[0:6,0:1]#1"},
           {attention + "linear_q_up_proj.weight", "8x6: 0.self_attn.q_b_proj[8:16,0:6]#0"},
           {attention + "linear_kv_down_proj.weight",
            "6x5: 0.self_attn.kv_a_proj_with_mqa[0:6,0:5]#1"},
           {attention + "linear_kv_up_proj.layer_norm_weight",
            "4x1: 0.self_attn.kv_a_layernorm[0:4,0:1]#1"},
           {attention + "linear_kv_up_proj.weight", "10x4: 0.self_attn.kv_b_proj[10:20,0:4]#0"},
           {attention + "linear_proj.weight", "5x6: 0.self_attn.o_proj[0:5,6:12]#0"},
           {"decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
            "5x1: 0.post_attention_layernorm[0:5,0:1]#1"},
           {"decoder.layers.1.pre_mlp_layernorm.weight",
            "5x1: 1.post_attention_layernorm[0:5,0:1]#1"}}) {
    CAPTURE(name);
    CHECK(content_of(rank, catalogue, name) == content);
  }
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("latent attention under the local spec") {
  const Catalogue catalogue = make_catalogue("latent", latent_config());
  const auto layout = make_trainer_layout("megatron:tp=2,spec=local", catalogue, 2);
  const RankLayout rank = layout->rank_layout(1);
  const std::string attention = "decoder.layers.0.self_attention.";
  for (const auto& [name, content] : std::vector<std::pair<std::string, std::string>>{
           {attention + "linear_q_down_proj.weight", "3x5: 0.self_attn.q_a_proj[3:6,0:5]#0"},
           {attention + "q_layernorm.weight", "6x1: 0.self_attn.q_a_layernorm[0:6,0:1]#1"},
           {attention + "linear_kv_down_proj.weight",
            "3x5: 0.self_attn.kv_a_proj_with_mqa[3:6,0:5]#0"},
           {attention + "kv_layernorm.weight", "4x1: 0.self_attn.kv_a_layernorm[0:4,0:1]#1"},
           {"decoder.layers.0.pre_mlp_layernorm.weight",
            "5x1: 0.post_attention_layernorm[0:5,0:1]#1"}}) {
    CAPTURE(name);
    CHECK(content_of(rank, catalogue, name) == content);
  }
  CHECK(wrong_cover(*layout, catalogue) == "");
  check_request_refused(
      [&] { (void)make_trainer_layout("megatron:tp=4,spec=local", catalogue, 4); },
      {"q_lora_rank = 6", "tp=4"});
}

TEST_CASE("queries that are projected at once have one projection") {
  auto config = latent_config();
  config.q_lora_rank = 0;
  const Catalogue catalogue = make_catalogue("latent", config);
  const auto layout = make_trainer_layout("megatron:tp=2", catalogue, 2);
  CHECK(content_of(layout->rank_layout(0), catalogue,
                   "decoder.layers.1.self_attention.linear_q_proj.weight") ==
        "8x5: 1.self_attn.q_proj[0:8,0:5]#0");
  CHECK(wrong_cover(*layout, catalogue) == "");
}

TEST_CASE("the local spec keeps norms apart from linear layers") {
  const Catalogue catalogue = make_catalogue("dense", dense_config(1));
  const auto layout = make_trainer_layout("megatron:tp=2,spec=local", catalogue, 2);
  const std::string layer = "decoder.layers.0.";
  CHECK(names_of(layout->rank_layout(0)) ==
        std::vector<std::string>{
            "embedding.word_embeddings.weight", layer + "input_layernorm.weight",
            layer + "self_attention.linear_qkv.weight", layer + "self_attention.q_layernorm.weight",
            layer + "self_attention.k_layernorm.weight",
            layer + "self_attention.linear_proj.weight", layer + "pre_mlp_layernorm.weight",
            layer + "mlp.linear_fc1.weight", layer + "mlp.linear_fc2.weight",
            "decoder.final_layernorm.weight", "output_layer.weight"});
  CHECK(content_of(layout->rank_layout(1), catalogue, layer + "self_attention.linear_qkv.weight") ==
        "12x5: 0.self_attn.q_proj[6:12,0:5]#0 0.self_attn.k_proj[3:6,0:5]#0 "
        "0.self_attn.v_proj[3:6,0:5]#0");
}

TEST_CASE("a shared expert may have a gate, and experts other names") {
  auto config = latent_config();
  config.family = "qwen2_moe";
  config.kv_lora_rank = 0;
  config.head_dim = 2;
  config.has_score_correction_bias = false;
  config.first_k_dense_replace = 0;
  config.shared_experts = 1;
  config.shared_intermediate = 6;
  config.has_shared_expert_gate = true;
  const Catalogue qwen = make_catalogue("qwen", config);
  const std::string mlp = "decoder.layers.1.mlp.";
  const auto rank = make_trainer_layout("megatron:tp=2", qwen, 2)->rank_layout(1);
  CHECK(content_of(rank, qwen, mlp + "shared_experts.gate_weight") ==
        "1x5: 1.mlp.shared_expert_gate[0:1,0:5]#1");
  CHECK(content_of(rank, qwen, mlp + "shared_experts.linear_fc1.weight") ==
        "6x5: 1.mlp.shared_expert.gate_proj[3:6,0:5]#0 1.mlp.shared_expert.up_proj[3:6,0:5]#0");
  config.family = "mixtral";
  config.shared_experts = 0;
  const Catalogue mixtral = make_catalogue("mixtral", config);
  const auto last = make_trainer_layout("megatron:tp=1,ep=2", mixtral, 2)->rank_layout(1);
  CHECK(content_of(last, mixtral, mlp + "experts.linear_fc1.weight0") ==
        "4x5: 1.block_sparse_moe.experts.2.w1[0:2,0:5]#0 "
        "1.block_sparse_moe.experts.2.w3[0:2,0:5]#0");
}

TEST_CASE("a bias on o_proj alone is refused") {
  auto config = dense_config(2);
  config.family = "seed_oss";
  config.attention_out_bias = true;
  const Catalogue seed = make_catalogue("seed", config);
  check_request_refused([&] { (void)make_trainer_layout("megatron:tp=1", seed, 1); },
                        {"seed", "attention_out_bias", "fsdp"});
}

TEST_CASE("what does not divide is refused with option and value") {
  const Catalogue dense = make_catalogue("dense", dense_config(4));
  const Catalogue latent = make_catalogue("latent", latent_config());
  auto narrow_config = latent_config();
  narrow_config.shared_experts = 1;
  const Catalogue narrow = make_catalogue("narrow", narrow_config);
  struct Wrong {
    const Catalogue& catalogue;
    std::string spec;
    uint32_t ranks;
    std::vector<std::string> words;
  };
  for (const Wrong& wrong :
       {Wrong{dense, "tp=2,pp=4", 6, {"6", "pp=4"}}, Wrong{dense, "tp=2,pp=2", 6, {"3", "tp=2"}},
        Wrong{dense, "tp=2,cp=2", 6, {"3", "cp=2"}},
        Wrong{dense, "ep=2", 2, {"ep=2", "no experts"}},
        Wrong{latent, "ep=3", 3, {"experts = 4", "ep=3"}},
        Wrong{latent, "ep=2,etp=3", 6, {"moe_intermediate_size = 2", "etp=3"}},
        Wrong{latent, "ep=2,etp=2", 6, {"3", "ep=2"}},
        Wrong{narrow, "tp=4,etp=1", 4, {"shared experts", "2", "tp=4"}},
        Wrong{dense, "experts=grouped,spec=tee", 1, {"spec=tee", "te"}},
        Wrong{dense, "ttp=2", 1, {"ttp", "tp"}}}) {
    CAPTURE(wrong.spec);
    check_request_refused(
        [&] { (void)make_trainer_layout("megatron:" + wrong.spec, wrong.catalogue, wrong.ranks); },
        wrong.words);
  }
}

TEST_CASE("a description reads back to itself") {
  const Catalogue catalogue = make_catalogue("latent", latent_config());
  for (const std::string spec :
       {"megatron:tp=1", "megatron:tp=2,ep=2,etp=1",
        "megatron:tp=1,pp=2,first=1,last=1,cp=2,experts=sequential,spec=local,pad_vocab=64,"
        "pad_with_tp=off",
        "megatron:tp=1,pp=2,layout=Et,|tL"}) {
    CHECK(make_trainer_layout(spec, catalogue, 4)->describe() == spec);
  }
  CHECK(make_trainer_layout("megatron:etp=2,tp=2,vpp=1,ep=1", catalogue, 4)->describe() ==
        "megatron:tp=2");
}

TEST_CASE("a trillion parameters on 1,024 ranks are all held") {
  const Catalogue catalogue = make_catalogue("kimi-k2", preset_config("kimi-k2"));
  const auto layout =
      make_trainer_layout("megatron:tp=8,pp=16,last=1,ep=64,etp=1", catalogue, 1024);
  CHECK(first_replica_elements(*layout) == 1'026'408'232'448);
  // The last stage has one layer, the norm and the output layer: six of 384 experts.
  const RankLayout last = layout->rank_layout(1023);
  CHECK(has_parameter(last, "decoder.layers.0.mlp.experts.linear_fc1.weight5"));
  CHECK_FALSE(has_parameter(last, "decoder.layers.0.mlp.experts.linear_fc1.weight6"));
  CHECK_FALSE(has_parameter(last, "decoder.layers.1.mlp.router.weight"));
  CHECK(content_of(last, catalogue, "output_layer.weight") ==
        "20480x7168: lm_head[143360:163840,0:7168]#7");
}

}  // namespace awex::test
