// SGLang's layout in small: which boxes of which tensors. Names, shapes and dtypes of whole models
// are engine_tables_test's; scripts/test-sglang.sh asks SGLang itself for all of it.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/shard_text.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

ModelConfig dense() {
  ModelConfig config;
  config.family = "qwen3";
  config.layers = 5;
  config.hidden = 8;
  config.heads = 8;
  config.kv_heads = 2;
  config.head_dim = 2;
  config.intermediate = 16;
  config.vocab = 100;  // padded to 128
  config.qk_norm = true;
  return config;
}

ModelConfig moe() {
  ModelConfig config = dense();
  config.family = "glm4_moe";
  config.experts = 4;
  config.experts_per_token = 2;
  config.moe_intermediate = 8;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  config.attention_bias = true;
  return config;
}

ModelConfig mla() {
  ModelConfig config = moe();
  config.family = "deepseek_v3";
  config.attention_bias = false;
  config.qk_norm = false;
  config.heads = 4;
  config.kv_heads = 4;
  config.head_dim = 0;
  config.q_lora_rank = 5;
  config.kv_lora_rank = 3;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 1;
  config.v_head_dim = 2;
  return config;
}

/// The catalogue of what the engine holds: GLM's routers are fp32.
Catalogue held_by_sglang(const ModelConfig& config) {
  return held_catalogue("sglang:tp=1", make_catalogue("small", config));
}

/// What one rank of `ranks` holds under `name`.
std::string held(const ModelConfig& config, const std::string& spec, uint32_t ranks, uint32_t rank,
                 const std::string& name) {
  const Catalogue catalogue = held_by_sglang(config);
  const auto layout = make_inference_layout(spec, catalogue, ranks);
  return parameter_text(catalogue, layout->rank_layout(rank), name);
}

}  // namespace

TEST_CASE("SGLang: the last stages take the spare layers, and layers keep their numbers") {
  const Catalogue catalogue = held_by_sglang(dense());
  const auto three = make_inference_layout("sglang:tp=2,pp=3", catalogue, 6);
  CHECK(layers_text(catalogue, three->rank_layout(1)) == "0-0");
  CHECK(layers_text(catalogue, three->rank_layout(2)) == "1-2");
  CHECK(layers_text(catalogue, three->rank_layout(5)) == "3-4");
  const auto names = [&](uint32_t rank, const std::string& name) {
    return parameter_text(catalogue, three->rank_layout(rank), name);
  };
  CHECK(names(1, "model.embed_tokens.weight") == "64x8: model.embed_tokens.weight[64,100)x[0,8)#0");
  CHECK(names(3, "model.embed_tokens.weight") == "none");
  CHECK(names(1, "model.norm.weight") == "none");
  CHECK(names(5, "model.norm.weight") == "8x1: model.norm.weight[0,8)x[0,1)#1");
  CHECK(names(3, "lm_head.weight") == "none");
  CHECK(names(4, "lm_head.weight") == "64x8: lm_head.weight[0,64)x[0,8)#0");
  CHECK(names(4, "model.layers.3.input_layernorm.weight") ==
        "8x1: input_layernorm.weight[0,8)x[0,1)#0");
}

TEST_CASE("SGLang: attention of data parallel attention is split over tp / attn_dp") {
  const std::string attention = "model.layers.2.self_attn.";
  CHECK(held(dense(), "sglang:tp=4,attn_dp=2", 4, 3, attention + "qkv_proj.weight") ==
        "12x8: self_attn.q_proj.weight[8,16)x[0,8)#1 self_attn.k_proj.weight[2,4)x[0,8)#1 "
        "self_attn.v_proj.weight[2,4)x[0,8)#1");
  CHECK(held(dense(), "sglang:tp=4,attn_dp=2", 4, 3, attention + "o_proj.weight") ==
        "8x8: self_attn.o_proj.weight[0,8)x[8,16)#1");
  CHECK(held(dense(), "sglang:tp=4,attn_dp=2", 4, 2, attention + "q_norm.weight") ==
        "2x1: self_attn.q_norm.weight[0,2)x[0,1)#2");
  // Four ranks an attention copy, two KV heads: neighbours share a head.
  CHECK(held(dense(), "sglang:tp=8,attn_dp=2", 8, 6, attention + "qkv_proj.weight") ==
        "8x8: self_attn.q_proj.weight[8,12)x[0,8)#1 self_attn.k_proj.weight[2,4)x[0,8)#2 "
        "self_attn.v_proj.weight[2,4)x[0,8)#2");
  CHECK(held(moe(), "sglang:tp=2", 2, 1, attention + "qkv_proj.bias") ==
        "12x1: self_attn.q_proj.bias[8,16)x[0,1)#0 self_attn.k_proj.bias[2,4)x[0,1)#0 "
        "self_attn.v_proj.bias[2,4)x[0,1)#0");
}

TEST_CASE("SGLang: embedding, lm_head and dense MLP under data parallel attention") {
  const std::string embedding = "model.embed_tokens.weight";
  const std::string spec = "sglang:tp=4,attn_dp=2";
  CHECK(held(dense(), spec, 4, 3, embedding) == "64x8: model.embed_tokens.weight[64,100)x[0,8)#1");
  CHECK(held(dense(), spec + ",embed=tp", 4, 3, embedding) ==
        "32x8: model.embed_tokens.weight[96,100)x[0,8)#0");
  CHECK(held(dense(), spec + ",embed=replicated", 4, 3, embedding) ==
        "128x8: model.embed_tokens.weight[0,100)x[0,8)#3");
  CHECK(held(dense(), spec, 4, 3, "lm_head.weight") == "32x8: lm_head.weight[96,100)x[0,8)#0");
  CHECK(held(dense(), spec + ",dp_lm_head=on", 4, 3, "lm_head.weight") ==
        "64x8: lm_head.weight[64,100)x[0,8)#1");
  const std::string gate_up = "model.layers.0.mlp.gate_up_proj.weight";
  CHECK(held(dense(), spec, 4, 3, gate_up) ==
        "8x8: mlp.gate_proj.weight[12,16)x[0,8)#0 mlp.up_proj.weight[12,16)x[0,8)#0");
  CHECK(held(moe(), spec + ",dense_mlp=replicated", 4, 3, gate_up) ==
        "32x8: mlp.gate_proj.weight[0,16)x[0,8)#3 mlp.up_proj.weight[0,16)x[0,8)#3");
  CHECK(held(dense(), spec, 4, 3, "model.layers.0.mlp.down_proj.weight") ==
        "8x4: mlp.down_proj.weight[0,8)x[12,16)#0");
}

TEST_CASE(
    "SGLang: classes that know nothing of data parallel attention split over tp all the same") {
  const auto held_by = [](const std::string& family, const std::string& name,
                          const std::string& options = "") {
    ModelConfig config = dense();
    config.family = family;
    config.qk_norm = false;
    return held(config, "sglang:tp=4,attn_dp=2" + options, 4, 3, name);
  };
  const std::string head = "32x8: lm_head.weight[96,100)x[0,8)#0";
  const std::string head_of_replica = "64x8: lm_head.weight[64,100)x[0,8)#1";
  for (const char* family : {"llama", "qwen2"}) {
    CHECK(held_by(family, "model.layers.0.self_attn.o_proj.weight") ==
          "8x4: self_attn.o_proj.weight[0,8)x[12,16)#0");
    CHECK(held_by(family, "model.layers.0.self_attn.qkv_proj.weight") ==
          "8x8: self_attn.q_proj.weight[12,16)x[0,8)#0 self_attn.k_proj.weight[2,4)x[0,8)#1 "
          "self_attn.v_proj.weight[2,4)x[0,8)#1");
    CHECK(held_by(family, "lm_head.weight") == head);
  }
  const std::string embedding = "model.embed_tokens.weight";
  CHECK(held_by("llama", embedding) == "32x8: model.embed_tokens.weight[96,100)x[0,8)#0");
  CHECK(held_by("qwen2", embedding) == "64x8: model.embed_tokens.weight[64,100)x[0,8)#1");
  CHECK(held_by("llama", "lm_head.weight", ",dp_lm_head=on") == head_of_replica);
  CHECK(held_by("qwen3", "lm_head.weight", ",dp_lm_head=on") == head_of_replica);
  CHECK(held_by("qwen2", "lm_head.weight", ",dp_lm_head=on") == head);
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    CHECK(held_by(family, "model.layers.0.mlp.down_proj.weight", ",dense_mlp=replicated") ==
          "8x4: mlp.down_proj.weight[0,8)x[12,16)#0");
  }
}

TEST_CASE("SGLang: a vocabulary that does not divide in 64s is padded to 64 rows a part") {
  ModelConfig config = dense();
  config.heads = 12;
  config.kv_heads = 3;
  config.intermediate = 12;
  const std::string embedding = "model.embed_tokens.weight";  // 100 rows: 128, over three 192
  CHECK(held(config, "sglang:tp=3", 3, 1, embedding) ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#0");
  CHECK(held(config, "sglang:tp=3", 3, 2, embedding) == "64x8:");
  CHECK(held(config, "sglang:tp=3,attn_dp=3", 3, 2, embedding) ==
        "128x8: model.embed_tokens.weight[0,100)x[0,8)#2");
  CHECK(held(config, "sglang:tp=3,attn_dp=3", 3, 0, "lm_head.weight") ==
        "64x8: lm_head.weight[0,64)x[0,8)#0");
  check_refused(config, "vllm:tp=3", 3, "padded vocabulary = 128 does not divide by tp=3");
}

TEST_CASE("SGLang: a rank whose vocabulary is all padding holds rows of nothing") {
  ModelConfig config = dense();
  config.vocab = 70;  // padded to 128: rank 3 of 4 has rows 96 to 128
  CHECK(held(config, "sglang:tp=4", 4, 2, "lm_head.weight") ==
        "32x8: lm_head.weight[64,70)x[0,8)#0");
  CHECK(held(config, "sglang:tp=4", 4, 3, "lm_head.weight") == "32x8:");
}

TEST_CASE("SGLang: experts go to ep groups of ranks, and each is split over tp / ep") {
  const std::string mlp = "model.layers.1.mlp.";
  CHECK(held(moe(), "sglang:tp=4,ep=2", 4, 3, mlp + "experts.w13_weight") ==
        "16x8: mlp.experts.2.gate_proj.weight[4,8)x[0,8)#0 "
        "mlp.experts.2.up_proj.weight[4,8)x[0,8)#0 mlp.experts.3.gate_proj.weight[4,8)x[0,8)#0 "
        "mlp.experts.3.up_proj.weight[4,8)x[0,8)#0");
  CHECK(held(moe(), "sglang:tp=4,ep=2", 4, 1, mlp + "experts.w2_weight") ==
        "16x4: mlp.experts.0.down_proj.weight[0,8)x[4,8)#0 "
        "mlp.experts.1.down_proj.weight[0,8)x[4,8)#0");
  CHECK(held(moe(), "sglang:tp=4,ep=4", 8, 5, mlp + "experts.w13_weight") ==
        "16x8: mlp.experts.1.gate_proj.weight[0,8)x[0,8)#1 "
        "mlp.experts.1.up_proj.weight[0,8)x[0,8)#1");
  CHECK(held(moe(), "sglang:tp=4,ep=4", 8, 5, mlp + "gate.weight") ==
        "4x8: mlp.gate.weight[0,4)x[0,8)#5");
}

TEST_CASE("SGLang: shared experts and the router's correction bias") {
  const std::string mlp = "model.layers.1.mlp.";
  const std::string gate_up = mlp + "shared_experts.gate_up_proj.weight";
  CHECK(held(moe(), "sglang:tp=2,ep=2", 2, 1, gate_up) ==
        "8x8: mlp.shared_experts.gate_proj.weight[4,8)x[0,8)#0 "
        "mlp.shared_experts.up_proj.weight[4,8)x[0,8)#0");
  CHECK(held(moe(), "sglang:tp=2,fuse_shared=off", 2, 1, mlp + "shared_experts.down_proj.weight") ==
        "8x4: mlp.shared_experts.down_proj.weight[0,8)x[4,8)#0");
  CHECK(held(moe(), "sglang:tp=2,shared_experts=replicated", 2, 1, gate_up) ==
        "16x8: mlp.shared_experts.gate_proj.weight[0,8)x[0,8)#1 "
        "mlp.shared_experts.up_proj.weight[0,8)x[0,8)#1");
  CHECK(held(moe(), "sglang:tp=2", 2, 1, mlp + "gate.e_score_correction_bias") ==
        "4x1: mlp.gate.e_score_correction_bias[0,4)x[0,1)#1");
  const Catalogue catalogue = held_by_sglang(moe());
  for (const auto& parameter :
       make_inference_layout("sglang:tp=2", catalogue, 2)->rank_layout(0).parameters) {
    const bool is_f32 = parameter.name.ends_with("e_score_correction_bias") ||
                        parameter.name.ends_with("mlp.gate.weight");  // GLM's router
    CHECK(parameter.dtype == (is_f32 ? DType::kF32 : DType::kBf16));
  }
}

TEST_CASE("SGLang: a fused shared expert is the last expert of every expert parallel rank") {
  const std::string mlp = "model.layers.1.mlp.";
  const std::string spec = "sglang:tp=4,ep=2,fuse_shared=on";
  CHECK(held(moe(), spec, 4, 3, mlp + "experts.w13_weight") ==
        "24x8: mlp.experts.2.gate_proj.weight[4,8)x[0,8)#0 "
        "mlp.experts.2.up_proj.weight[4,8)x[0,8)#0 mlp.experts.3.gate_proj.weight[4,8)x[0,8)#0 "
        "mlp.experts.3.up_proj.weight[4,8)x[0,8)#0 "
        "mlp.shared_experts.gate_proj.weight[4,8)x[0,8)#1 "
        "mlp.shared_experts.up_proj.weight[4,8)x[0,8)#1");
  CHECK(held(moe(), "sglang:tp=4,ep=4,fuse_shared=on", 4, 2, mlp + "experts.w2_weight") ==
        "16x8: mlp.experts.2.down_proj.weight[0,8)x[0,8)#0 "
        "mlp.shared_experts.down_proj.weight[0,8)x[0,8)#2");
  CHECK(held(moe(), spec, 4, 3, mlp + "shared_experts.gate_up_proj.weight") == "none");
  ModelConfig none = moe();
  none.shared_experts = 0;
  CHECK(held(none, "sglang:tp=4,ep=4,fuse_shared=on", 4, 2, mlp + "experts.w2_weight") ==
        "8x8: mlp.experts.2.down_proj.weight[0,8)x[0,8)#0");
  CHECK(held(moe(), spec, 4, 3, mlp + "shared_experts.down_proj.weight") == "none");
}

TEST_CASE("SGLang: the shared expert is fused where the engine does so unless told otherwise") {
  const std::string shared = "model.layers.1.mlp.shared_experts.down_proj.weight";
  const auto fuses = [&](const ModelConfig& config, const std::string& spec) {
    return held(config, spec, 4, 0, shared) == "none";
  };
  CHECK(fuses(moe(), "sglang:tp=4"));
  CHECK(fuses(moe(), "sglang:tp=4,attn_dp=2"));
  CHECK_FALSE(fuses(moe(), "sglang:tp=4,fuse_shared=off"));
  CHECK_FALSE(fuses(moe(), "sglang:tp=4,ep=2"));
  CHECK(fuses(moe(), "sglang:tp=4,ep=2,fuse_shared=on"));
  CHECK_FALSE(fuses(moe(), "sglang:tp=4,shared_experts=replicated"));
  ModelConfig several = moe();
  several.shared_experts = 2;
  CHECK_FALSE(fuses(several, "sglang:tp=4"));
  ModelConfig v3 = mla();
  CHECK_FALSE(fuses(v3, "sglang:tp=4"));
  for (const uint64_t experts : {255, 256, 384}) {
    v3.experts = experts;
    CHECK(fuses(v3, "sglang:tp=4") == (experts == 256));
  }
  v3.experts = 256;
  CHECK_FALSE(fuses(v3, "sglang:tp=4,ep=4"));
  CHECK(held(v3, "sglang:tp=4", 4, 3, "model.layers.1.mlp.experts.w2_weight")
            .starts_with("2056x2: mlp.experts.0.down_proj.weight[0,8)x[6,8)#0 "));
  const Catalogue catalogue = held_by_sglang(moe());
  CHECK(make_inference_layout("sglang:tp=4,fuse_shared=on", catalogue, 4)->describe() ==
        "sglang:tp=4");
  CHECK(make_inference_layout("sglang:tp=4,fuse_shared=off", catalogue, 4)->describe() ==
        "sglang:tp=4,fuse_shared=off");
}

TEST_CASE(
    "SGLang: which stages have a head, and whether a tied one is there, is the class's choice") {
  const auto head = [](ModelConfig config, const std::string& family, bool tied, uint32_t rank,
                       const std::string& spec = "sglang:tp=1,pp=2") {
    config.family = family;
    config.tied_embeddings = tied;
    return held(config, spec, 2, rank, "lm_head.weight");
  };
  const std::string copy = "128x8: model.embed_tokens.weight[0,100)x[0,8)#";
  const std::string own = "128x8: lm_head.weight[0,100)x[0,8)#";
  CHECK(head(dense(), "llama", true, 1) == "none");
  CHECK(head(dense(), "llama", false, 0) == own + "0");
  CHECK(head(dense(), "llama", false, 1) == own + "1");
  for (const char* family : {"qwen2", "qwen3"}) {
    CHECK(head(dense(), family, true, 0) == "none");
    CHECK(head(dense(), family, true, 1) == copy + "1");
    CHECK(head(dense(), family, false, 0) == "none");
  }
  ModelConfig sparse = moe();
  sparse.first_k_dense_replace = 0;
  for (const char* family : {"qwen3_moe", "glm4_moe"}) {
    CHECK(head(sparse, family, true, 0) == copy + "1");
    CHECK(head(sparse, family, true, 1) == copy + "2");
    CHECK(head(sparse, family, false, 0) == own + "0");
    CHECK(head(sparse, family, false, 1) == own + "1");
    CHECK(head(sparse, family, true, 0, "sglang:tp=1") == copy + "1");
  }
}

TEST_CASE("SGLang: Qwen3-MoE with layers without experts is refused") {
  ModelConfig config = moe();
  config.family = "qwen3_moe";
  config.shared_experts = 0;
  config.first_k_dense_replace = 0;
  CHECK(held(config, "sglang:tp=1", 1, 0, "model.layers.0.mlp.gate_up_proj.weight") == "none");
  const std::string rest =
      " of this model has none (mlp_only_layers, decoder_sparse_step): the engine would not load "
      "it";
  const std::string start = "SGLang's class of qwen3_moe has experts in every layer, layer ";
  config.mlp_only_layers = {3};
  check_refused(config, "sglang:tp=1", 1, start + "3" + rest);
  config.mlp_only_layers = {};
  config.decoder_sparse_step = 2;
  check_refused(config, "sglang:tp=1", 1, start + "0" + rest);
}

TEST_CASE("SGLang: fp8 is written where the user says that the engine keeps it") {
  check_refused(dense(), "sglang:keeps_fp8=on", 1,
                "\"sglang:keeps_fp8=on\": keeps_fp8=on is for dtype=fp8");
  const Catalogue model = held_by_sglang(dense());
  const std::string spec = "sglang:tp=1,dtype=fp8,block=4";
  const Catalogue fp8 = held_catalogue(spec, model);
  CHECK_THROWS_WITH_AS((void)make_inference_layout(spec, fp8, 1),
                       doctest::Contains("SGLang requantises fp8 weights"), Error);
  CHECK(make_inference_layout(spec + ",keeps_fp8=on", fp8, 1)->describe() ==
        "sglang:tp=1,keeps_fp8=on,dtype=fp8,block=4");
}

TEST_CASE("SGLang: what a user must know of the engine is noted, and nothing else") {
  const auto notes = [](ModelConfig config, const std::string& family, const std::string& spec) {
    config.family = family;
    const Catalogue catalogue = make_catalogue("small", config);
    const Catalogue held = held_catalogue(spec, catalogue);
    std::string text;
    for (const auto& note : make_inference_layout(spec, held, 4)->notes()) text += note + "\n";
    return text;
  };
  const std::string experts =
      "on a Blackwell GPU SGLang lays experts out anew after loading, unless it is started with "
      "--moe-runner-backend triton\n";
  const std::string latent =
      "SGLang computes with copies of kv_b_proj (w_kc, w_vc): run the model's post_load_weights() "
      "after every update, or it serves old attention weights\n";
  const std::string replicas =
      "SGLang's class of this model has no data parallel attention: its q, k, v and o are split "
      "over tp although attn_dp says otherwise\n";
  CHECK(notes(mla(), "deepseek_v3", "sglang:tp=2") == latent + experts);
  CHECK(notes(moe(), "glm4_moe", "sglang:tp=4,attn_dp=2") == experts);
  for (const char* family : {"llama", "qwen2"}) {
    CHECK(notes(dense(), family, "sglang:tp=4,attn_dp=2") == replicas);
    CHECK(notes(dense(), family, "sglang:tp=4").empty());
  }
  CHECK(notes(dense(), "qwen3", "sglang:tp=4,attn_dp=2").empty());
  CHECK(notes(mla(), "deepseek_v3", "vllm:tp=2").empty());
}

TEST_CASE("SGLang: latent attention is whole before the heads and split by heads after") {
  const std::string attention = "model.layers.0.self_attn.";
  const std::string spec = "sglang:tp=4,attn_dp=2";
  CHECK(held(mla(), spec, 4, 3, attention + "fused_qkv_a_proj_with_mqa.weight") ==
        "9x8: self_attn.q_a_proj.weight[0,5)x[0,8)#3 "
        "self_attn.kv_a_proj_with_mqa.weight[0,4)x[0,8)#3");
  CHECK(held(mla(), spec, 4, 3, attention + "q_a_layernorm.weight") ==
        "5x1: self_attn.q_a_layernorm.weight[0,5)x[0,1)#3");
  CHECK(held(mla(), spec, 4, 3, attention + "kv_a_layernorm.weight") ==
        "3x1: self_attn.kv_a_layernorm.weight[0,3)x[0,1)#3");
  CHECK(held(mla(), spec, 4, 3, attention + "q_b_proj.weight") ==
        "6x5: self_attn.q_b_proj.weight[6,12)x[0,5)#1");
  CHECK(held(mla(), spec, 4, 3, attention + "kv_b_proj.weight") ==
        "8x3: self_attn.kv_b_proj.weight[8,16)x[0,3)#1");
  CHECK(held(mla(), spec, 4, 3, attention + "o_proj.weight") ==
        "8x4: self_attn.o_proj.weight[0,8)x[4,8)#1");
  ModelConfig direct = mla();
  direct.q_lora_rank = 0;
  CHECK(held(direct, spec, 4, 1, attention + "q_proj.weight") ==
        "6x8: self_attn.q_proj.weight[6,12)x[0,8)#0");
  CHECK(held(direct, spec, 4, 1, attention + "kv_a_proj_with_mqa.weight") ==
        "4x8: self_attn.kv_a_proj_with_mqa.weight[0,4)x[0,8)#1");
  CHECK(held(direct, spec, 4, 1, attention + "q_b_proj.weight") == "none");
}

TEST_CASE("SGLang: a tied embedding has a copy of its own on the last of several stages") {
  ModelConfig config = dense();
  config.tied_embeddings = true;
  const std::string spec = "sglang:tp=2,pp=2";
  CHECK(held(config, spec, 8, 0, "model.embed_tokens.weight") ==
        "64x8: model.embed_tokens.weight[0,64)x[0,8)#0");
  CHECK(held(config, spec, 8, 3, "lm_head.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#1");
  CHECK(held(config, spec, 8, 1, "lm_head.weight") == "none");
  CHECK(held(config, spec, 8, 4, "model.embed_tokens.weight") ==
        "64x8: model.embed_tokens.weight[0,64)x[0,8)#2");
  CHECK(held(config, spec, 8, 7, "lm_head.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#3");
  CHECK(held(config, "sglang:tp=2", 2, 1, "lm_head.weight") == "none");
  // Two whole embeddings on the first stage, one split lm_head on the last.
  CHECK(held(config, spec + ",attn_dp=2", 4, 1, "model.embed_tokens.weight") ==
        "128x8: model.embed_tokens.weight[0,100)x[0,8)#1");
  CHECK(held(config, spec + ",attn_dp=2", 4, 3, "lm_head.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#2");
}

TEST_CASE("SGLang: the shards of one replica hold every element once, in every mode") {
  const std::vector<std::string> any{"sglang:tp=1",
                                     "sglang:tp=1,pp=5",
                                     "sglang:tp=2,pp=3",
                                     "sglang:tp=4,attn_dp=4",
                                     "sglang:tp=4,pp=2,attn_dp=2,embed=tp,dp_lm_head=on",
                                     "sglang:tp=4,pp=2,attn_dp=4,embed=replicated",
                                     "sglang:tp=4,attn_dp=2,dense_mlp=replicated"};
  const std::vector<std::string> with_experts{"sglang:tp=2,ep=2,shared_experts=replicated",
                                              "sglang:tp=4,pp=2,ep=2,fuse_shared=on",
                                              "sglang:tp=4,ep=4,attn_dp=2,fuse_shared=on"};
  for (ModelConfig config : {dense(), moe(), mla()}) {
    for (const bool tied : {false, true}) {
      config.tied_embeddings = tied;
      const Catalogue catalogue = held_by_sglang(config);
      std::vector<std::string> specs = any;
      if (config.experts > 0) specs.insert(specs.end(), with_experts.begin(), with_experts.end());
      for (const auto& spec : specs) {
        CAPTURE(spec);
        check_replicas(spec, catalogue);
      }
    }
  }
}

TEST_CASE("SGLang: what does not fit is refused with size, option and value") {
  check_refused(dense(), "sglang:tp=2,pp=2", 6,
                "6 inference ranks are no multiple of the 4 of one instance (tp=2, pp=2, dp=1)");
  check_refused(dense(), "sglang:pp=6", 6, "pp=6 leaves stages without any of the 5 layers");
  check_refused(dense(), "sglang:tp=4,attn_dp=3", 4, "tp = 4 does not divide by attn_dp=3");
  check_refused(dense(), "sglang:tp=4,ep=3", 4, "tp = 4 does not divide by ep=3");
  check_refused(dense(), "sglang:tp=6,attn_dp=2", 6,
                "num_attention_heads = 8 does not divide by tp/attn_dp=3");
  check_refused(moe(), "sglang:tp=8,ep=8", 8, "number of experts = 4 does not divide by ep=8");
  for (const char* spec : {"sglang:tp=8", "sglang:tp=8,ep=4"}) {
    check_refused(moe(), spec, 8, "SGLang does not start with tp=8 for a model of 4 experts");
  }
  ModelConfig narrow = moe();
  narrow.moe_intermediate = 6;
  narrow.experts = 8;
  check_refused(narrow, "sglang:tp=8,ep=2", 8,
                "moe_intermediate_size = 6 does not divide by tp/ep=4");
  check_refused(narrow, "sglang:tp=4,ep=4", 4,
                "width of the shared experts = 6 does not divide by tp=4");
  ModelConfig several = moe();
  several.shared_experts = 2;
  check_refused(several, "sglang:tp=2,fuse_shared=on", 2,
                "fuse_shared=on: the engine fuses one shared expert, this model has 2");
  ModelConfig odd = dense();
  odd.heads = 12;
  odd.kv_heads = 4;
  check_refused(odd, "sglang:tp=6", 6,
                "tp=6 neither divides nor is a multiple of num_key_value_heads = 4");
}

TEST_CASE("SGLang: Kimi-K2 at its real size is whole over 32 ranks") {
  const Catalogue catalogue = make_catalogue("kimi-k2", preset_config("kimi-k2"));
  const auto layout = make_inference_layout("sglang:tp=32,ep=32", catalogue, 64);
  uint64_t first_copies = 0;
  for (uint32_t rank = 0; rank < 64; ++rank) {
    for (const Shard& shard : layout->rank_layout(rank).shards) {
      if (shard.replica == 0) first_copies += shard.box.elements();
    }
  }
  CHECK(first_copies == 1'026'408'232'448U);
  CHECK(parameter_text(catalogue, layout->rank_layout(33), "model.layers.1.mlp.experts.w2_weight")
            .starts_with("86016x2048: mlp.experts.12.down_proj.weight[0,7168)x[0,2048)#1 "));
}

}  // namespace awex::test
