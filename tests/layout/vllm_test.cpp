// vLLM's layout against expectations worked out by hand from layouts.md section 5.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/shard_text.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

ModelConfig moe() {
  ModelConfig config;
  config.architecture = Architecture::kQwen3Moe;
  config.layers = 5;
  config.hidden = 8;
  config.heads = 8;
  config.kv_heads = 2;
  config.head_dim = 2;
  config.intermediate = 16;
  config.vocab = 100;  // padded to 128
  config.qk_norm = true;
  config.experts = 5;
  config.experts_per_token = 2;
  config.moe_intermediate = 8;
  config.mlp_only_layers = {0};
  return config;
}

ModelConfig mla() {
  ModelConfig config = moe();
  config.architecture = Architecture::kDeepseekV3;
  config.qk_norm = false;
  config.kv_heads = 8;
  config.head_dim = 0;
  config.q_lora_rank = 5;
  config.kv_lora_rank = 3;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 1;
  config.v_head_dim = 2;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.mlp_only_layers = {};
  config.first_k_dense_replace = 1;
  return config;
}

/// What one rank of `ranks` holds under `name`.
std::string held(const ModelConfig& config, const std::string& spec, uint32_t ranks, uint32_t rank,
                 const std::string& name) {
  const Catalogue catalogue = make_catalogue("small", config);
  const auto layout = make_inference_layout(spec, catalogue, ranks);
  return parameter_text(catalogue, layout->rank_layout(rank), name);
}

std::vector<std::string> stages(const std::string& spec, uint32_t ranks, uint64_t layers) {
  ModelConfig config = moe();
  config.layers = layers;
  const Catalogue catalogue = make_catalogue("small", config);
  const auto layout = make_inference_layout(spec, catalogue, ranks);
  std::vector<std::string> found;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    found.push_back(layers_text(catalogue, layout->rank_layout(rank)));
  }
  return found;
}

}  // namespace

TEST_CASE("vLLM: the stages before the last take the spare layers, the nearest first") {
  using Stages = std::vector<std::string>;
  CHECK(stages("vllm:pp=2", 2, 5) == Stages{"0-2", "3-4"});
  CHECK(stages("vllm:pp=3", 3, 5) == Stages{"0-1", "2-3", "4-4"});
  CHECK(stages("vllm:pp=4", 4, 5) == Stages{"0-0", "1-1", "2-3", "4-4"});
  CHECK(stages("vllm:pp=4", 4, 6) == Stages{"0-0", "1-2", "3-4", "5-5"});
  CHECK(stages("vllm:pp=4", 4, 7) == Stages{"0-1", "2-3", "4-5", "6-6"});
  CHECK(stages("vllm:pp=3", 3, 6) == Stages{"0-1", "2-3", "4-5"});
}

TEST_CASE("vLLM: ranks run tp, then pp, then dp, then instances") {
  CHECK(stages("vllm:tp=2,pp=2,dp=2", 8, 4) ==
        std::vector<std::string>{"0-1", "0-1", "2-3", "2-3", "0-1", "0-1", "2-3", "2-3"});
  const std::string qkv = "model.layers.1.self_attn.qkv_proj.weight";
  CHECK(held(moe(), "vllm:tp=2,pp=2,dp=2", 16, 5, qkv) ==
        "12x8: self_attn.q_proj.weight[8,16)x[0,8)#1 self_attn.k_proj.weight[2,4)x[0,8)#1 "
        "self_attn.v_proj.weight[2,4)x[0,8)#1");
  CHECK(held(moe(), "vllm:tp=2,pp=2,dp=2", 16, 12, qkv) ==
        "12x8: self_attn.q_proj.weight[0,8)x[0,8)#3 self_attn.k_proj.weight[0,2)x[0,8)#3 "
        "self_attn.v_proj.weight[0,2)x[0,8)#3");
  CHECK(held(moe(), "vllm:tp=2,pp=2,dp=2", 16, 7, "lm_head.weight") ==
        "64x8: lm_head.weight[64,100)x[0,8)#1");
  CHECK(held(moe(), "vllm:tp=2,dp=2", 4, 3, "model.layers.1.input_layernorm.weight") ==
        "8x1: input_layernorm.weight[0,8)x[0,1)#3");
  CHECK(held(moe(), "vllm:tp=2,dp=2", 4, 3, "model.layers.0.mlp.gate_up_proj.weight") ==
        "16x8: mlp.gate_proj.weight[8,16)x[0,8)#1 mlp.up_proj.weight[8,16)x[0,8)#1");
}

TEST_CASE("vLLM: ranks share a KV head where there are more ranks than heads") {
  const std::string qkv = "model.layers.1.self_attn.qkv_proj.weight";
  CHECK(held(moe(), "vllm:tp=4,dp=2", 8, 7, qkv) ==
        "8x8: self_attn.q_proj.weight[12,16)x[0,8)#1 self_attn.k_proj.weight[2,4)x[0,8)#3 "
        "self_attn.v_proj.weight[2,4)x[0,8)#3");
}

TEST_CASE("vLLM: without expert parallelism every expert is split over dp and tp") {
  const std::string experts = "model.layers.1.mlp.experts.";
  CHECK(held(moe(), "vllm:tp=2,dp=2", 4, 3, experts + "w2_weight") ==
        "40x2: mlp.experts.0.down_proj.weight[0,8)x[6,8)#0 "
        "mlp.experts.1.down_proj.weight[0,8)x[6,8)#0 mlp.experts.2.down_proj.weight[0,8)x[6,8)#0 "
        "mlp.experts.3.down_proj.weight[0,8)x[6,8)#0 mlp.experts.4.down_proj.weight[0,8)x[6,8)#0");
  CHECK(held(moe(), "vllm:tp=2,dp=2", 4, 2, experts + "w13_weight")
            .starts_with("20x8: mlp.experts.0.gate_proj.weight[4,6)x[0,8)#0 "
                         "mlp.experts.0.up_proj.weight[4,6)x[0,8)#0 "));
}

TEST_CASE("vLLM: with expert parallelism the first ranks hold one expert more") {
  const auto w2 = [](uint32_t rank) {
    return held(moe(), "vllm:tp=2,ep=on,dp=2", 4, rank, "model.layers.1.mlp.experts.w2_weight");
  };
  CHECK(w2(0) ==
        "16x8: mlp.experts.0.down_proj.weight[0,8)x[0,8)#0 "
        "mlp.experts.1.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(1) == "8x8: mlp.experts.2.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(2) == "8x8: mlp.experts.3.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(3) == "8x8: mlp.experts.4.down_proj.weight[0,8)x[0,8)#0");
  // 5 experts over 3 ranks: 2, 2, 1; rank 2 is the last of its instance, rank 4 in the second one.
  const std::string w13 = "model.layers.1.mlp.experts.w13_weight";
  CHECK(held(moe(), "vllm:ep=on,dp=3", 6, 2, w13) ==
        "16x8: mlp.experts.4.gate_proj.weight[0,8)x[0,8)#0 "
        "mlp.experts.4.up_proj.weight[0,8)x[0,8)#0");
  CHECK(held(moe(), "vllm:ep=on,dp=3", 6, 4, w13)
            .starts_with("32x8: mlp.experts.2.gate_proj.weight[0,8)x[0,8)#1 "));
}

TEST_CASE("vLLM: latent attention, shared experts and the correction bias") {
  const std::string attention = "model.layers.0.self_attn.";
  const std::string spec = "vllm:tp=2,ep=on,dp=2";
  CHECK(held(mla(), spec, 4, 3, attention + "fused_qkv_a_proj.weight") ==
        "9x8: self_attn.q_a_proj.weight[0,5)x[0,8)#3 "
        "self_attn.kv_a_proj_with_mqa.weight[0,4)x[0,8)#3");
  CHECK(held(mla(), spec, 4, 3, attention + "q_b_proj.weight") ==
        "12x5: self_attn.q_b_proj.weight[12,24)x[0,5)#1");
  CHECK(held(mla(), spec, 4, 1, attention + "kv_b_proj.weight") ==
        "16x3: self_attn.kv_b_proj.weight[16,32)x[0,3)#0");
  CHECK(held(mla(), spec, 4, 1, attention + "o_proj.weight") ==
        "8x8: self_attn.o_proj.weight[0,8)x[8,16)#0");
  const std::string mlp = "model.layers.1.mlp.";
  CHECK(held(mla(), spec, 4, 3, mlp + "shared_experts.gate_up_proj.weight") ==
        "8x8: mlp.shared_experts.gate_proj.weight[4,8)x[0,8)#1 "
        "mlp.shared_experts.up_proj.weight[4,8)x[0,8)#1");
  CHECK(held(mla(), spec + ",shared_experts=replicated", 4, 3,
             mlp + "shared_experts.down_proj.weight") ==
        "8x8: mlp.shared_experts.down_proj.weight[0,8)x[0,8)#3");
  CHECK(held(mla(), spec, 4, 3, mlp + "gate.e_score_correction_bias") ==
        "5x1: mlp.gate.e_score_correction_bias[0,5)x[0,1)#3");
}

TEST_CASE("vLLM: the last stage has its own tied embedding under the embedding's name") {
  ModelConfig config = moe();
  config.tied_embeddings = true;
  const std::string name = "model.embed_tokens.weight";
  const std::string spec = "vllm:tp=2,pp=3,dp=2";
  CHECK(held(config, spec, 12, 1, name) == "64x8: model.embed_tokens.weight[64,100)x[0,8)#0");
  CHECK(held(config, spec, 12, 3, name) == "none");
  CHECK(held(config, spec, 12, 5, name) == "64x8: model.embed_tokens.weight[64,100)x[0,8)#2");
  CHECK(held(config, spec, 12, 10, name) == "64x8: model.embed_tokens.weight[0,64)x[0,8)#3");
  CHECK(held(config, spec, 12, 5, "lm_head.weight") == "none");
  CHECK(held(config, "vllm:tp=2", 2, 0, name) == "64x8: model.embed_tokens.weight[0,64)x[0,8)#0");
}

TEST_CASE("vLLM: the shards of one replica hold every element once, in every mode") {
  for (ModelConfig config : {moe(), mla()}) {
    for (const bool tied : {false, true}) {
      config.tied_embeddings = tied;
      const Catalogue catalogue = make_catalogue("small", config);
      for (const char* spec : {"vllm:tp=1", "vllm:tp=4", "vllm:tp=2,pp=3", "vllm:tp=1,ep=on,dp=3",
                               "vllm:tp=2,pp=2,ep=on,dp=2", "vllm:tp=4,pp=5,dp=2",
                               "vllm:tp=4,ep=on,shared_experts=replicated"}) {
        CAPTURE(spec);
        check_replicas(spec, catalogue);
      }
    }
  }
}

TEST_CASE("vLLM: what does not fit is refused with size, option and value") {
  check_refused(moe(), "vllm:tp=2,dp=2", 6,
                "6 inference ranks are no multiple of the 4 of one instance (tp=2, pp=1, dp=2)");
  check_refused(moe(), "vllm:pp=6", 6, "pp=6 leaves stages without any of the 5 layers");
  check_refused(moe(), "vllm:tp=3", 3, "num_attention_heads = 8 does not divide by tp=3");
  check_refused(moe(), "vllm:tp=8,dp=2", 16,
                "moe_intermediate_size = 8 does not divide by dp*tp=16");
  check_refused(moe(), "vllm:tp=2,ep=on,dp=4", 8,
                "5 experts are too few for 8 expert parallel ranks");
  ModelConfig narrow = mla();
  narrow.moe_intermediate = 7;
  check_refused(narrow, "vllm:tp=2,ep=on", 2,
                "width of the shared experts = 7 does not divide by tp=2");
}

TEST_CASE(
    "vLLM: Kimi-K2 at its real size is whole over 80 expert parallel ranks, which do not divide "
    "its experts") {
  const Catalogue catalogue = make_catalogue("kimi-k2", preset_config("kimi-k2"));
  const auto layout = make_inference_layout("vllm:tp=8,pp=2,ep=on,dp=10", catalogue, 160);
  uint64_t first_copies = 0;
  for (uint32_t rank = 0; rank < 160; ++rank) {
    for (const Shard& shard : layout->rank_layout(rank).shards) {
      if (shard.replica == 0) first_copies += shard.box.elements();
    }
  }
  CHECK(first_copies == 1'026'408'232'448U);
}

}  // namespace awex::test
