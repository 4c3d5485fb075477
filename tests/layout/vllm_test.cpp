// vLLM's layout against expectations worked out by hand from layouts.md section 5.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/shard_text.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

ModelConfig moe() {
  ModelConfig config;
  config.family = "qwen3_moe";
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
  config.family = "deepseek_v3";
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

ModelConfig dense() {
  ModelConfig config = moe();
  config.family = "qwen3";
  config.experts = 0;
  return config;
}

/// The Qwen3-MoE with experts in every layer: no stage is without.
ModelConfig sparse() {
  ModelConfig config = moe();
  config.mlp_only_layers = {};
  return config;
}

ModelConfig glm() {
  ModelConfig config = mla();
  config.family = "glm4_moe";
  config.q_lora_rank = config.kv_lora_rank = 0;
  config.qk_nope_head_dim = config.qk_rope_head_dim = config.v_head_dim = 0;
  config.kv_heads = config.head_dim = 2;
  return config;
}

/// What one rank of `ranks` holds under `name`.
std::string held(const ModelConfig& config, const std::string& spec, uint32_t ranks, uint32_t rank,
                 const std::string& name) {
  const Catalogue catalogue = held_catalogue(spec, make_catalogue("small", config));
  const auto layout = make_inference_layout(spec, catalogue, ranks);
  return parameter_text(catalogue, layout->rank_layout(rank), name);
}

std::vector<std::string> stages(const std::string& spec, uint32_t ranks, uint64_t layers) {
  ModelConfig config = dense();
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
  CHECK(held(dense(), "vllm:tp=2,pp=2,dp=2", 16, 7, "lm_head.weight") ==
        "64x8: lm_head.weight[64,100)x[0,8)#1");
  CHECK(held(dense(), "vllm:tp=2,pp=2,dp=2", 16, 5, "lm_head.weight") == "none");
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
  const std::string experts = "model.layers.1.mlp.experts.routed_experts.";
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
    return held(moe(), "vllm:tp=2,ep=on,dp=2", 4, rank,
                "model.layers.1.mlp.experts.routed_experts.w2_weight");
  };
  CHECK(w2(0) ==
        "16x8: mlp.experts.0.down_proj.weight[0,8)x[0,8)#0 "
        "mlp.experts.1.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(1) == "8x8: mlp.experts.2.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(2) == "8x8: mlp.experts.3.down_proj.weight[0,8)x[0,8)#0");
  CHECK(w2(3) == "8x8: mlp.experts.4.down_proj.weight[0,8)x[0,8)#0");
  // 5 experts over 3 ranks: 2, 2, 1; rank 2 is the last of its instance, rank 4 in the second one.
  const std::string w13 = "model.layers.1.mlp.experts.routed_experts.w13_weight";
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
        "16x8: mlp.shared_experts.gate_proj.weight[0,8)x[0,8)#3 "
        "mlp.shared_experts.up_proj.weight[0,8)x[0,8)#3");
  CHECK(
      held(mla(), spec + ",shared_experts=tp", 4, 3, mlp + "shared_experts.gate_up_proj.weight") ==
      "8x8: mlp.shared_experts.gate_proj.weight[4,8)x[0,8)#1 "
      "mlp.shared_experts.up_proj.weight[4,8)x[0,8)#1");
  for (const char* split : {"vllm:tp=2,dp=2", "vllm:tp=2,ep=on"}) {
    CHECK(held(mla(), split, 4, 3, mlp + "shared_experts.down_proj.weight") ==
          "8x4: mlp.shared_experts.down_proj.weight[0,8)x[4,8)#1");
  }
  CHECK(held(mla(), spec + ",shared_experts=replicated", 4, 3,
             mlp + "shared_experts.down_proj.weight") ==
        "8x8: mlp.shared_experts.down_proj.weight[0,8)x[0,8)#3");
  CHECK(held(mla(), spec, 4, 3, mlp + "gate.e_score_correction_bias") ==
        "5x1: mlp.gate.e_score_correction_bias[0,5)x[0,1)#3");
}

TEST_CASE("vLLM: the last stage has its own tied embedding under the embedding's name") {
  ModelConfig config = dense();
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

TEST_CASE("vLLM: a tied head that the checkpoint stores has its own name on the last stage") {
  ModelConfig config = dense();
  config.tied_embeddings = true;
  const std::string spec = "vllm:tp=2,pp=3,dp=2,stored_head=on";
  CHECK(held(config, spec, 12, 5, "lm_head.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#2");
  CHECK(held(config, spec, 12, 5, "model.embed_tokens.weight") == "none");
  CHECK(held(config, spec, 12, 1, "model.embed_tokens.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#0");
  CHECK(held(config, spec, 12, 1, "lm_head.weight") == "none");
  // On one stage vLLM ties them again when it has found them alike.
  CHECK(held(config, "vllm:tp=2,stored_head=on", 2, 0, "lm_head.weight") == "none");
  check_refused(dense(), "vllm:stored_head=on", 1,
                "\"vllm:stored_head=on\": stored_head=on is for tied heads, this model's is not");
}

TEST_CASE("vLLM: every stage of a Qwen3-MoE has embedding, last norm and head") {
  const std::string spec = "vllm:tp=2,pp=3,dp=2";
  CHECK(held(moe(), spec, 12, 3, "model.embed_tokens.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#2");
  CHECK(held(moe(), spec, 12, 0, "lm_head.weight") == "64x8: lm_head.weight[0,64)x[0,8)#0");
  CHECK(held(moe(), spec, 12, 11, "lm_head.weight") == "64x8: lm_head.weight[64,100)x[0,8)#5");
  CHECK(held(moe(), spec, 12, 2, "model.norm.weight") == "8x1: model.norm.weight[0,8)x[0,1)#4");
  ModelConfig tied = moe();
  tied.tied_embeddings = true;
  CHECK(held(tied, spec, 12, 5, "model.embed_tokens.weight") ==
        "64x8: model.embed_tokens.weight[64,100)x[0,8)#4");
  CHECK(held(tied, spec, 12, 5, "lm_head.weight") == "none");
}

TEST_CASE("vLLM: the experts' names are those of the version") {
  const auto has = [](const std::string& version, const std::string& name) {
    return held(moe(), "vllm:tp=1" + version, 1, 0, "model.layers.1.mlp." + name) != "none";
  };
  for (const char* version :
       {"", ",version=0.33", ",version=0.32.0", ",version=v0.25.1", ",version=0.24"}) {
    CAPTURE(version);
    CHECK(has(version, "experts.routed_experts.w13_weight"));
    CHECK_FALSE(has(version, "experts.w13_weight"));
  }
  for (const char* version : {",version=0.23", ",version=0.12.0"}) {
    CAPTURE(version);
    CHECK(has(version, "experts.w2_weight"));
    CHECK_FALSE(has(version, "experts.routed_experts.w2_weight"));
  }
  const Catalogue catalogue = make_catalogue("small", moe());
  CHECK(make_inference_layout("vllm:version=0.23.1", catalogue, 1)->describe() ==
        "vllm:tp=1,version=0.23");
  CHECK(make_inference_layout("vllm:version=0.33", catalogue, 1)->describe() == "vllm:tp=1");
  for (const char* version : {"0.11.2", "0.34", "1.0", "0.9"}) {
    check_refused(
        moe(), fmt::format("vllm:version={}", version), 1,
        fmt::format(
            "\"vllm:version={0}\": the layout of vLLM {0} is not known, only that of 0.12 to 0.33",
            version));
  }
  for (const char* version : {"new", "0", "0.", "0.32.", "0.32.0.1", ".32", "0.32x", "-1.2"}) {
    check_refused(moe(), fmt::format("vllm:version={}", version), 1,
                  fmt::format("\"vllm:version={0}\": version={0} is no version of vLLM", version));
  }
}

TEST_CASE("vLLM: fp8 that the engine changes after loading is refused") {
  const auto make = [](const std::string& spec) {
    ModelConfig config = moe();
    const Catalogue held = held_catalogue(spec, make_catalogue("small", config));
    return make_inference_layout(spec, held, 2)->describe();
  };
  const auto refuse = [&](const std::string& spec, const std::string& remedy) {
    CAPTURE(spec);
    std::string hint;
    try {
      (void)make(spec);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::kRequest);
      hint = error.hint();
    }
    CHECK(hint.find(remedy) != std::string::npos);
  };
  refuse("vllm:dtype=fp8,block=2", "VLLM_USE_DEEP_GEMM=0");
  refuse("vllm:tp=2,ep=on,dtype=fp8,block=2", "deep_gemm=off");
  refuse("vllm:tp=2,ep=on,deep_gemm=off,dtype=fp8,block=2", "--moe-backend triton");
  refuse("vllm:dp=2,ep=on,deep_gemm=off,dtype=fp8,block=2", "moe_backend=triton");
  for (const char* spec : {"vllm:tp=2,deep_gemm=off,dtype=fp8,block=2",
                           "vllm:tp=1,ep=on,deep_gemm=off,dtype=fp8,block=2",
                           "vllm:tp=2,ep=on,deep_gemm=off,moe_backend=triton,dtype=fp8,block=2"}) {
    CAPTURE(spec);
    CHECK(make(spec) == spec);
  }
}

TEST_CASE("vLLM: what must follow an update, or decides what it holds, is in the notes") {
  const auto notes = [](const ModelConfig& config, const std::string& spec) {
    const Catalogue held = held_catalogue(spec, make_catalogue("small", config));
    std::string text;
    for (const auto& note : make_inference_layout(spec, held, 2)->notes()) text += note + "\n";
    return text;
  };
  const std::string fp8 = "vllm:tp=1,deep_gemm=off,dtype=fp8,block=1";
  CHECK(notes(mla(), fp8).find("copies of kv_b_proj (W_UV, W_UK_T)") != std::string::npos);
  CHECK(notes(mla(), "vllm:tp=2").empty());
  CHECK(notes(glm(), fp8).empty());
  CHECK(notes(moe(), fp8).find("routers in fp8") != std::string::npos);
  CHECK(notes(moe(), "vllm:tp=2").empty());
  ModelConfig tied = dense();
  tied.tied_embeddings = true;
  CHECK(notes(tied, "vllm:pp=2").find("say stored_head=on") != std::string::npos);
  CHECK(notes(tied, "vllm:pp=2,stored_head=on").empty());
  CHECK(notes(tied, "vllm:tp=2").empty());
  CHECK(notes(dense(), "vllm:pp=2").empty());
}

TEST_CASE("GLM-4.5's router is fp32 in both engines unless the spec says otherwise") {
  const ModelConfig config = glm();
  const auto router = [&](const std::string& spec) {
    const Catalogue held = held_catalogue(spec, make_catalogue("small", config));
    CHECK(make_inference_layout(spec, held, 2)->describe() == spec);
    return held.tensors()[held.index_of("model.layers.1.mlp.gate.weight")].dtype;
  };
  CHECK(router("vllm:tp=2") == DType::kF32);
  CHECK(router("sglang:tp=2") == DType::kF32);
  CHECK(router("vllm:tp=2,dtype=fp16") == DType::kF32);
  CHECK(router("vllm:tp=2,deep_gemm=off,dtype=fp8,block=1") == DType::kF32);
  CHECK(router("sglang:tp=2,router_dtype=bf16") == DType::kBf16);
  CHECK(router("vllm:tp=2,router_dtype=bf16") == DType::kBf16);
}

TEST_CASE("vLLM: the shards of one replica hold every element once, in every mode") {
  for (ModelConfig config : {sparse(), mla(), dense()}) {
    for (const bool tied : {false, true}) {
      if (tied && config.is_mla()) continue;  // refused
      config.tied_embeddings = tied;
      const Catalogue catalogue = make_catalogue("small", config);
      for (std::string spec : {"vllm:tp=1", "vllm:tp=4", "vllm:tp=2,pp=3", "vllm:tp=1,ep=on,dp=3",
                               "vllm:tp=2,pp=2,ep=on,dp=2", "vllm:tp=4,pp=5,dp=2",
                               "vllm:tp=4,ep=on,shared_experts=replicated"}) {
        CAPTURE(spec);
        check_replicas(spec, catalogue);
        if (tied) check_replicas(spec + ",stored_head=on", catalogue);
      }
    }
  }
}

TEST_CASE("vLLM: a stage without experts is refused where the engine's class ends on it") {
  ModelConfig config = moe();  // layer 0 of 5 is dense
  check_refused(config, "vllm:pp=5", 5,
                "\"vllm:pp=5\": layers 0 to 0, stage 0 of 5, have no experts: vLLM's class of this "
                "model ends with an error on such a stage");
  config.mlp_only_layers = {3, 4};
  check_refused(config, "vllm:pp=3", 3,
                "\"vllm:pp=3\": layers 4 to 4, stage 2 of 3, have no experts: vLLM's class of this "
                "model ends with an error on such a stage");
  config.mlp_only_layers = {};
  config.decoder_sparse_step = 2;  // experts in layers 1 and 3
  check_refused(config, "vllm:tp=2,pp=3", 6,
                "\"vllm:tp=2,pp=3\": layers 4 to 4, stage 2 of 3, have no experts: vLLM's class of "
                "this model ends with an error on such a stage");
  config = glm();
  config.first_k_dense_replace = 2;
  const std::string first =
      "have no experts: vLLM's class of this model ends with an error on "
      "such a stage";
  check_refused(config, "vllm:pp=4", 4, "\"vllm:pp=4\": layers 0 to 0, stage 0 of 4, " + first);
  config.first_k_dense_replace = 5;
  check_refused(config, "vllm:tp=2", 2, "\"vllm:tp=2\": layers 0 to 4, stage 0 of 1, " + first);
  config = mla();  // its class warns only
  config.first_k_dense_replace = 2;
  CHECK(held(config, "vllm:pp=5", 5, 0, "model.layers.0.mlp.gate_up_proj.weight") != "none");
}

TEST_CASE("vLLM: the hint for a stage without experts is the largest pp that works") {
  const auto hint = [](const ModelConfig& config, const std::string& spec, uint32_t ranks) {
    const Catalogue held = held_catalogue(spec, make_catalogue("small", config));
    std::string text = "accepted";
    try {
      (void)make_inference_layout(spec, held, ranks);
    } catch (const Error& error) {
      text = error.hint();
    }
    return text;
  };
  CHECK(hint(moe(), "vllm:pp=5", 5) == "pp=3 is the largest that leaves experts to every stage");
  CHECK(hint(moe(), "vllm:pp=3", 3) == "accepted");
  ModelConfig config = glm();
  config.first_k_dense_replace = 3;
  CHECK(hint(config, "vllm:pp=5", 5) == "pp=1 is the largest that leaves experts to every stage");
  CHECK(hint(config, "vllm:pp=2", 2) == "pp=1 is the largest that leaves experts to every stage");
  CHECK(hint(config, "vllm:pp=1", 1) == "accepted");
  config.first_k_dense_replace = 9;
  CHECK(hint(config, "vllm:pp=1", 1).find("no layer of this model has experts") == 0);
}

TEST_CASE("vLLM: models that its classes take otherwise than config.json says are refused") {
  const std::string head =
      ": tie_word_embeddings is true, but vLLM's class of this model builds an lm_head of its own, "
      "and what the checkpoint stores decides whether vLLM ties it after loading";
  for (ModelConfig config : {mla(), glm()}) {
    config.tied_embeddings = true;
    check_refused(config, "vllm:tp=2", 2, "\"vllm:tp=2\"" + head);
    check_refused(config, "vllm:pp=2", 2, "\"vllm:pp=2\"" + head);
  }
  ModelConfig few = sparse();
  few.experts = 2;
  check_refused(few, "vllm:tp=4", 4,
                "\"vllm:tp=4\": vLLM's class of qwen3_moe refuses a tp above the 2 experts");
  CHECK(held(few, "vllm:tp=2,dp=2", 4, 0, "model.norm.weight") != "none");
  for (ModelConfig others : {mla(), glm()}) {
    others.experts = 2;
    CHECK(held(others, "vllm:tp=2,dp=2", 4, 0, "model.norm.weight") != "none");
  }
  ModelConfig wide = dense();
  wide.family = "qwen2";
  wide.qk_norm = false;
  wide.attention_bias = true;
  check_refused(
      wide, "vllm:tp=2", 2,
      "\"vllm:tp=2\": vLLM's class of qwen2 takes hidden_size / num_attention_heads = 8 / 8 for "
      "the size of a head "
      "and ignores head_dim = 2: it would load other weights");
  wide.hidden = 16;
  CHECK(held(wide, "vllm:tp=2", 2, 0, "model.norm.weight") != "none");
}

ModelConfig mixtral() {
  ModelConfig config = sparse();
  config.family = "mixtral";
  config.qk_norm = false;
  config.moe_intermediate = config.intermediate;
  return config;
}

/// Heads share the hidden size, a shared expert is of another width than the others.
ModelConfig qwen2_moe() {
  ModelConfig config = sparse();
  config.family = "qwen2_moe";
  config.qk_norm = false;
  config.attention_bias = true;
  config.hidden = 16;
  config.shared_experts = 1;
  config.shared_intermediate = 12;
  config.has_shared_expert_gate = true;
  return config;
}

TEST_CASE("vLLM: Mixtral's experts are in block_sparse_moe, and its ends on every stage") {
  const std::string moe = "model.layers.1.block_sparse_moe.";
  CHECK(held(mixtral(), "vllm:tp=2", 2, 1, moe + "gate.weight") ==
        "5x8: block_sparse_moe.gate.weight[0,5)x[0,8)#1");
  const auto w13 = held(mixtral(), "vllm:tp=2", 2, 1, moe + "experts.routed_experts.w13_weight");
  CHECK(
      w13.starts_with("80x8: block_sparse_moe.experts.0.w1.weight[8,16)x[0,8)#0 "
                      "block_sparse_moe.experts.0.w3.weight[8,16)x[0,8)#0 "));
  CHECK(held(mixtral(), "vllm:tp=2", 2, 1, moe + "experts.routed_experts.w2_weight")
            .starts_with("40x8: block_sparse_moe.experts.0.w2.weight[0,8)x[8,16)#0 "));
  CHECK(held(mixtral(), "vllm:pp=2", 2, 1, "model.embed_tokens.weight") != "none");
}

TEST_CASE("vLLM: Qwen2-MoE's shared expert and its gate") {
  const std::string mlp = "model.layers.1.mlp.";
  CHECK(held(qwen2_moe(), "vllm:tp=2", 2, 1, mlp + "shared_expert.gate_up_proj.weight") ==
        "12x16: mlp.shared_expert.gate_proj.weight[6,12)x[0,16)#0 "
        "mlp.shared_expert.up_proj.weight[6,12)x[0,16)#0");
  CHECK(held(qwen2_moe(), "vllm:tp=2", 2, 1, mlp + "shared_expert_gate.weight") ==
        "1x16: mlp.shared_expert_gate.weight[0,1)x[0,16)#1");
  ModelConfig unbiased = qwen2_moe();
  unbiased.attention_bias = false;
  check_refused(unbiased, "vllm:tp=2", 2,
                "\"vllm:tp=2\": vLLM's class of qwen2_moe has biases of q, k and v, this model has "
                "none (qkv_bias)");
}

TEST_CASE("vLLM: a family without a class is refused by name") {
  ModelConfig seed = dense();
  seed.family = "seed_oss";
  check_refused(seed, "vllm:tp=2", 2, "vLLM (0.33) has no class for models of type seed_oss");
}

TEST_CASE("vLLM: what does not fit is refused with size, option and value") {
  check_refused(moe(), "vllm:tp=2,dp=2", 6,
                "6 inference ranks are no multiple of the 4 of one instance (tp=2, pp=1, dp=2)");
  check_refused(moe(), "vllm:pp=6", 6, "pp=6 leaves stages without any of the 5 layers");
  check_refused(moe(), "vllm:tp=3", 3, "num_attention_heads = 8 does not divide by tp=3");
  check_refused(moe(), "vllm:tp=4,dp=4", 16,
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
