#include "model/config.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "model/presets.hpp"
#include "model/refusal.hpp"

using namespace awex;
using nlohmann::json;

namespace {

/// A published config.json, without what does not concern weights.
json llama() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "attention_bias": false, "mlp_bias": false, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rope_scaling": {"factor": 8.0, "rope_type": "llama3"},
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256})");
}

/// As published, but for the fp8 weights and the routing.
json deepseek() {
  return json::parse(R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": false, "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280})");
}

json glm_air() {
  return json::parse(R"({"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe",
    "attention_bias": true, "first_k_dense_replace": 1, "head_dim": 128, "hidden_size": 4096,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1,
    "n_routed_experts": 128, "n_shared_experts": 1, "num_attention_heads": 96,
    "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "tie_word_embeddings": false,
    "topk_group": 1, "torch_dtype": "bfloat16", "use_qk_norm": false, "vocab_size": 151552})");
}

json moe() { return json::parse(config_to_json(preset_config("qwen3-30b-a3b"))); }

ModelConfig parse(const json& object) { return parse_config(object.dump(), "dir/config.json"); }

json with(json object, const char* field, const json& value) {
  object[field] = value;
  return object;
}

json without(json object, const char* field) {
  object.erase(field);
  return object;
}

void check_refused(const json& object, const char* field, const char* why) {
  CAPTURE(object.dump());
  test::check_refused([&] { (void)parse(object); }, {"dir/config.json", field, why});
}

}  // namespace

TEST_CASE("a published config gives the preset of that model") {
  CHECK(parse(llama()) == preset_config("llama-3.1-8b"));
  auto expected = preset_config("deepseek-v3");
  expected.mtp_layers = 1;
  CHECK(parse(deepseek()) == expected);
  expected = preset_config("glm-4.5-air");
  expected.mtp_layers = 1;
  CHECK(parse(glm_air()) == expected);
}

TEST_CASE("Kimi-K2's config gives its preset, under its own model type") {
  auto kimi = deepseek();
  kimi.update(json::parse(R"({"model_type": "kimi_k2", "num_attention_heads": 64,
    "num_key_value_heads": 64, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "vocab_size": 163840})"));
  CHECK(parse(kimi) == preset_config("kimi-k2"));
  CHECK(parse(without(kimi, "architectures")) == preset_config("kimi-k2"));
}

TEST_CASE("every preset survives config.json and back") {
  for (const auto& name : preset_names()) {
    CAPTURE(name);
    CHECK(parse_config(config_to_json(preset_config(name)), "f") == preset_config(name));
  }
}

TEST_CASE("dense layers among experts survive config.json and back") {
  auto config = preset_config("tiny-moe");
  config.mlp_only_layers = {0, 7};
  config.decoder_sparse_step = 2;
  config.dtype = DType::kF32;
  CHECK(parse_config(config_to_json(config), "f") == config);
}

TEST_CASE(
    "models without a latent q, shared experts or dense layers survive config.json and back") {
  auto config = preset_config("tiny-mla");
  config.q_lora_rank = 0;
  config.shared_experts = 0;
  config.first_k_dense_replace = 0;
  config.mtp_layers = 2;
  const auto text = config_to_json(config);
  CHECK(parse_config(text, "f") == config);
  const auto object = json::parse(text);
  CHECK(object["q_lora_rank"].is_null());
  CHECK(object["n_shared_experts"].is_null());
}

TEST_CASE("absent and null fields take transformers' defaults") {
  CHECK(parse(without(llama(), "num_key_value_heads")).kv_heads == 32);
  CHECK(parse(with(llama(), "head_dim", nullptr)).head_dim == 128);
  CHECK_FALSE(parse(without(llama(), "tie_word_embeddings")).tied_embeddings);
  CHECK(parse(with(without(llama(), "torch_dtype"), "dtype", "float16")).dtype == DType::kF16);
  CHECK(parse(without(llama(), "architectures")).family == "llama");
  CHECK(parse(without(llama(), "model_type")).family == "llama");
  CHECK(parse(without(without(moe(), "mlp_only_layers"), "decoder_sparse_step")) ==
        preset_config("qwen3-30b-a3b"));
  auto qwen3 = json::parse(config_to_json(preset_config("qwen3-4b")));
  CHECK(parse(without(qwen3, "head_dim")).head_dim == 128);
}

TEST_CASE("models with shared experts take transformers' defaults") {
  auto few = deepseek();
  for (const char* field :
       {"first_k_dense_replace", "kv_lora_rank", "moe_intermediate_size", "moe_layer_freq",
        "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "num_nextn_predict_layers",
        "num_key_value_heads", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "topk_method", "attention_bias"}) {
    few.erase(field);
  }
  CHECK(parse(few) == preset_config("deepseek-v3"));
  CHECK(parse(with(few, "q_lora_rank", nullptr)).q_lora_rank == 0);
  few = glm_air();
  for (const char* field :
       {"first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts",
        "num_experts_per_tok", "num_key_value_heads", "num_nextn_predict_layers", "use_qk_norm"}) {
    few.erase(field);
  }
  CHECK(parse(few) == preset_config("glm-4.5-air"));
}

TEST_CASE("KV heads and a head size do not change latent attention") {
  auto object = with(with(deepseek(), "num_key_value_heads", 7), "head_dim", 64);
  CHECK(parse(object) == parse(deepseek()));
}

TEST_CASE("GLM-4.5 has biases of q, k and v, and their norms, if its config says so") {
  CHECK_FALSE(parse(with(glm_air(), "attention_bias", false)).attention_bias);
  CHECK_FALSE(parse(without(glm_air(), "attention_bias")).attention_bias);
  CHECK(parse(with(glm_air(), "use_qk_norm", true)).qk_norm);
}

TEST_CASE("qwen2 always has biases of q, k and v") {
  const auto qwen2 = json::parse(config_to_json(preset_config("tiny-dense-bias")));
  CHECK(parse(qwen2).attention_bias);
  CHECK(parse(with(qwen2, "attention_bias", false)).attention_bias);
}

TEST_CASE("Mistral takes its own defaults") {
  auto mistral =
      with(with(llama(), "architectures", {"MistralForCausalLM"}), "model_type", "mistral");
  CHECK(parse(without(mistral, "num_key_value_heads")).kv_heads == 8);
  CHECK(parse(with(mistral, "num_key_value_heads", nullptr)).kv_heads == 32);
  CHECK(parse(with(mistral, "sliding_window", 4096)) == parse(mistral));
  CHECK(parse(with(mistral, "head_dim", 64)).head_dim == 64);
}

TEST_CASE("Mixtral takes its own defaults, and its experts are as wide as its config's MLP") {
  const auto mixtral = json::parse(config_to_json(preset_config("mixtral-8x7b")));
  CHECK(mixtral["num_local_experts"] == 8);
  auto few = mixtral;
  for (const char* field :
       {"num_local_experts", "num_experts_per_tok", "num_key_value_heads", "head_dim"}) {
    few.erase(field);
  }
  CHECK(parse(few) == preset_config("mixtral-8x7b"));
  CHECK(parse(with(without(mixtral, "num_local_experts"), "num_experts", 6)).experts == 6);
  CHECK(parse(with(mixtral, "intermediate_size", 96)).moe_intermediate == 96);
  check_refused(with(mixtral, "num_local_experts", 1), "num_experts_per_tok", "1 experts");
  check_refused(with(mixtral, "model_type", "mistral"), "model_type", "contradicts");
}

TEST_CASE("Qwen2-MoE has a shared expert of its own width, and biases unless its config says no") {
  const auto qwen = json::parse(config_to_json(preset_config("qwen1.5-moe-a2.7b")));
  auto few = qwen;
  for (const char* field : {"num_experts", "num_experts_per_tok", "num_key_value_heads", "head_dim",
                            "qkv_bias", "moe_intermediate_size", "shared_expert_intermediate_size",
                            "decoder_sparse_step", "mlp_only_layers"}) {
    few.erase(field);
  }
  CHECK(parse(few) == preset_config("qwen1.5-moe-a2.7b"));
  CHECK_FALSE(parse(with(qwen, "qkv_bias", false)).attention_bias);
  const auto config = parse(with(qwen, "shared_expert_intermediate_size", 77));
  CHECK(config.shared_width() == 77);
  check_refused(with(qwen, "shared_expert_intermediate_size", 0), "shared_expert_intermediate_size",
                "is 0;");
  check_refused(with(qwen, "shared_expert_intermediate_size", 1 << 25),
                "shared_expert_intermediate_size", "from 1 to");
  CHECK_FALSE(parse(with(qwen, "mlp_only_layers", {2})).is_moe_layer(2));
}

TEST_CASE("Seed-OSS says apart which projections have a bias") {
  const auto seed = json::parse(config_to_json(preset_config("seed-oss-36b")));
  CHECK(parse(without(seed, "attention_bias")).attention_bias);
  CHECK_FALSE(parse(with(seed, "attention_bias", false)).attention_bias);
  CHECK_FALSE(parse(without(seed, "attention_out_bias")).attention_out_bias);
  const auto out = with(seed, "attention_out_bias", true);
  CHECK(parse(out).attention_out_bias);
  CHECK(parse_config(config_to_json(parse(out)), "f") == parse(out));
  CHECK(parse(without(seed, "head_dim")).head_dim == 128);
  CHECK(parse(without(seed, "num_key_value_heads")).kv_heads == 8);
  check_refused(with(seed, "mlp_bias", true), "mlp_bias", "MLP");
}

TEST_CASE("MiMo always has biases of q, k and v, and its layers for drafts lie apart") {
  const auto mimo = json::parse(config_to_json(preset_config("mimo-7b")));
  CHECK(parse(with(mimo, "attention_bias", false)).attention_bias);
  CHECK(parse(with(mimo, "num_nextn_predict_layers", 1)) == preset_config("mimo-7b"));
  CHECK(parse(without(mimo, "num_key_value_heads")).kv_heads == 32);
}

TEST_CASE("GLM-4.7-Flash takes its own defaults") {
  auto few = json::parse(config_to_json(preset_config("glm-4.7-flash")));
  for (const char* field :
       {"first_k_dense_replace", "kv_lora_rank", "moe_intermediate_size", "moe_layer_freq",
        "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "num_key_value_heads",
        "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) {
    few.erase(field);
  }
  CHECK(parse(few) == preset_config("glm-4.7-flash"));
  CHECK(parse(with(few, "num_nextn_predict_layers", 1)).mtp_layers == 1);
  check_refused(with(few, "attention_bias", true), "attention_bias", "o_proj");
}

TEST_CASE("missing and absurd sizes are refused with field, value and file") {
  for (const char* field :
       {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "num_experts", "num_experts_per_tok",
        "moe_intermediate_size", "decoder_sparse_step"}) {
    check_refused(with(moe(), field, 0), field, "is 0;");
    check_refused(with(moe(), field, -4), field, "is -4;");
    check_refused(with(moe(), field, 128.0), field, "is 128.0;");
    check_refused(with(moe(), field, "128"), field, "is \"128\";");
    check_refused(with(moe(), field, 4294967297), field, "is 4294967297;");
    check_refused(with(moe(), field, 1e300), field, "is 1e+300;");
  }
  for (const char* field : {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
                            "v_head_dim", "n_routed_experts", "n_shared_experts"}) {
    check_refused(with(deepseek(), field, 0), field, "is 0;");
    check_refused(with(deepseek(), field, 1.5), field, "is 1.5;");
    check_refused(with(deepseek(), field, 4294967297), field, "is 4294967297;");
  }
  for (const char* field : {"first_k_dense_replace", "num_nextn_predict_layers"}) {
    check_refused(with(deepseek(), field, -1), field, "from 0 to");
    check_refused(with(deepseek(), field, 4294967297), field, "from 0 to");
  }
  for (const char* field : {"num_hidden_layers", "hidden_size", "num_attention_heads",
                            "intermediate_size", "vocab_size"}) {
    check_refused(without(llama(), field), field, "is missing;");
  }
}

TEST_CASE("sizes that are possible alone but not together are refused") {
  check_refused(with(llama(), "num_key_value_heads", 5), "num_attention_heads", "5 KV heads");
  check_refused(with(llama(), "hidden_size", 4097), "head_dim", "4097");
  check_refused(with(moe(), "num_experts_per_tok", 129), "num_experts_per_tok", "128");
  check_refused(with(moe(), "mlp_only_layers", {48}), "mlp_only_layers", "48");
  check_refused(with(moe(), "mlp_only_layers", {3, 3}), "mlp_only_layers", "different");
  check_refused(with(moe(), "mlp_only_layers", "none"), "mlp_only_layers", "list");
  check_refused(with(with(llama(), "vocab_size", 1 << 24), "num_hidden_layers", 1'000'000),
                "num_hidden_layers", "1000000");
  auto vast = with(with(llama(), "hidden_size", 1 << 24), "intermediate_size", 1 << 24);
  check_refused(with(with(vast, "head_dim", 128), "num_hidden_layers", 1000), "hidden_size",
                "16777216");
  check_refused(with(with(moe(), "num_experts", 1 << 20), "num_hidden_layers", 50), "num_experts",
                "1048576");
  for (const char* rank : {"q_lora_rank", "kv_lora_rank"}) {
    check_refused(with(with(deepseek(), rank, 1 << 24), "num_attention_heads", 1 << 24),
                  "num_hidden_layers", "n_routed_experts");
  }
  check_refused(
      with(with(deepseek(), "n_shared_experts", 1 << 24), "moe_intermediate_size", 1 << 24),
      "num_hidden_layers", "n_routed_experts");
}

TEST_CASE("models that we cannot lay out are refused") {
  check_refused(with(llama(), "architectures", {"GemmaForCausalLM"}), "architectures", "Gemma");
  check_refused(with(llama(), "architectures", json::array()), "architectures", "[]");
  check_refused(with(llama(), "architectures", "LlamaForCausalLM"), "architectures", "one");
  check_refused(with(llama(), "model_type", "qwen3"), "model_type", "contradicts");
  check_refused(with(llama(), "model_type", "gpt2"), "model_type", "gpt2");
  check_refused(without(without(llama(), "model_type"), "architectures"), "architectures",
                "missing");
  check_refused(with(llama(), "attention_bias", true), "attention_bias", "o_proj");
  check_refused(with(llama(), "mlp_bias", true), "mlp_bias", "MLP");
  check_refused(with(llama(), "torch_dtype", "int8"), "torch_dtype", "int8");
  check_refused(with(deepseek(), "attention_bias", true), "attention_bias", "o_proj");
  check_refused(with(deepseek(), "moe_layer_freq", 2), "moe_layer_freq", "is 2;");
  check_refused(with(deepseek(), "topk_method", "greedy"), "topk_method", "noaux_tc");
  check_refused(with(deepseek(), "model_type", "deepseek_v2"), "model_type", "deepseek_v2");
  check_refused(with(deepseek(), "model_type", "glm4_moe"), "model_type", "contradicts");
  check_refused(with(llama(), "model_type", "kimi_k2"), "model_type", "contradicts");
  check_refused(with(glm_air(), "num_experts_per_tok", 129), "num_experts_per_tok", "128");
  check_refused(without(with(glm_air(), "hidden_size", 5120), "head_dim"), "head_dim", "5120");
  check_refused(with(llama(), "tie_word_embeddings", "yes"), "tie_word_embeddings",
                "true or false");
}

TEST_CASE("the language part of a model of several modalities is named") {
  json whole{{"architectures", {"Qwen3VLForConditionalGeneration"}}, {"model_type", "qwen3_vl"}};
  whole["text_config"] = llama();
  check_refused(whole, "text_config", "several modalities");
  check_refused(json{{"architectures", {"LlamaForCausalLM"}}, {"text_config", llama()}},
                "text_config", "several modalities");
  CHECK(parse(with(llama(), "text_config", llama())).layers == parse(llama()).layers);
}

TEST_CASE("text that is no config is refused") {
  const auto refuse = [](const std::string& text, const char* why) {
    CAPTURE(text.substr(0, 80));
    test::check_refused([&] { (void)parse_config(text, "dir/config.json"); },
                        {"dir/config.json", why});
  };
  refuse("", "byte");
  refuse("{", "byte");
  refuse("[1, 2]", "object");
  refuse(R"({"hidden_size": 1, "hidden_size": 2})", "twice");
  refuse(R"({"a": {"b": 1, "c": {}, "b": 2}})", "twice");
  refuse(R"({"hidden_size": 1e999})", "range");
  refuse("{\"a\": \"\xff\"}", "byte");
  refuse(std::string(100'000, '['), "nested");
  refuse(R"({"a": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}", "nested");
}

TEST_CASE("keeping layers drops the later ones and nothing else") {
  auto config = preset_config("tiny-moe");
  config.mlp_only_layers = {1, 4, 11};
  const auto kept = keep_first_layers(config, 4, "m");
  CHECK(kept.layers == 4);
  CHECK(kept.mlp_only_layers == std::set<uint64_t>{1});
  CHECK(keep_first_layers(config, 12, "m") == config);
  const auto published = parse(deepseek());
  CHECK(keep_first_layers(published, 61, "m") == preset_config("deepseek-v3"));
  CHECK_FALSE(keep_first_layers(published, 2, "m").is_moe_layer(1));
  test::check_refused([&] { (void)keep_first_layers(config, 0, "the-model"); },
                      {"--layers 0", "the-model", "12"});
  test::check_refused([&] { (void)keep_first_layers(config, 13, "the-model"); },
                      {"--layers 13", "the-model", "12"});
}

TEST_CASE("fields have the names of transformers 4 and 5, and of remote code") {
  const auto renamed = [](json object, const char* from, const char* to) {
    object[to] = object[from];
    object.erase(from);
    return object;
  };
  CHECK(
      parse(renamed(with(moe(), "num_experts", 64), "num_experts", "num_local_experts")).experts ==
      64);
  for (const char* name : {"num_local_experts", "num_experts"}) {
    CHECK(parse(renamed(with(deepseek(), "n_routed_experts", 96), "n_routed_experts", name))
              .experts == 96);
    CHECK(
        parse(renamed(with(glm_air(), "n_routed_experts", 96), "n_routed_experts", name)).experts ==
        96);
  }
  CHECK(parse(renamed(deepseek(), "num_nextn_predict_layers", "num_mtp_layers")).mtp_layers == 1);
  CHECK(parse(with(moe(), "num_local_experts", 128)) == parse(moe()));
  check_refused(with(moe(), "num_local_experts", 64), "num_local_experts", "contradicts");
  auto five = with(without(llama(), "torch_dtype"), "dtype", "torch.float32");
  CHECK(parse(five).dtype == DType::kF32);
  CHECK(parse(with(five, "torch_dtype", "bfloat16")).dtype == DType::kF32);
  CHECK(parse(with(llama(), "architectures", {"FSDPLlamaForCausalLM"})) == parse(llama()));
  auto typed = without(deepseek(), "first_k_dense_replace");
  typed["mlp_layer_types"] = json::array();
  for (int layer = 0; layer < 61; ++layer) {
    typed["mlp_layer_types"].push_back(layer < 5 ? "dense" : "sparse");
  }
  CHECK(parse(typed).first_k_dense_replace == 5);
  check_refused(with(typed, "first_k_dense_replace", 3), "first_k_dense_replace", "contradicts");
  typed["mlp_layer_types"][7] = "dense";
  check_refused(typed, "mlp_layer_types", "behind sparse");
  check_refused(with(typed, "mlp_layer_types", {"dense"}), "mlp_layer_types", "61 layers");
}

TEST_CASE("null KV heads are as many as heads") {
  for (const char* preset : {"qwen2.5-7b", "qwen3-8b", "llama-3.1-8b"}) {
    const auto object = json::parse(config_to_json(preset_config(preset)));
    CHECK(parse(with(object, "num_key_value_heads", nullptr)).kv_heads ==
          preset_config(preset).heads);
  }
}

TEST_CASE("a default is never told as if the user had written it") {
  const auto qwen2 = json::parse(config_to_json(preset_config("qwen2.5-0.5b")));
  check_refused(without(qwen2, "num_key_value_heads"), "num_attention_heads",
                "32 KV heads (transformers' default: \"num_key_value_heads\" is missing)");
  check_refused(without(with(moe(), "num_experts_per_tok", 129), "num_experts"),
                "num_experts_per_tok",
                "128 experts (transformers' default: \"num_experts\" is missing)");
  check_refused(without(with(moe(), "num_experts", 4), "num_experts_per_tok"),
                "\"num_experts_per_tok\" is missing", "transformers' default of 8");
  const auto config = parse_checkpoint_config(without(moe(), "num_experts").dump(), "f");
  CHECK(config.assumptions() == "config.json leaves out \"num_experts\" (taken as 128)");
  CHECK(parse_checkpoint_config(moe().dump(), "f").assumptions().empty());
}

TEST_CASE("a config need not name a dtype") {
  for (const auto& object : {without(llama(), "torch_dtype"), with(llama(), "torch_dtype", "auto"),
                             with(llama(), "torch_dtype", "float8_e4m3fn")}) {
    const auto config = parse_checkpoint_config(object.dump(), "f");
    CHECK_FALSE(config.names_dtype);
    CHECK(config.model.dtype == DType::kBf16);
  }
  CHECK(parse_checkpoint_config(llama().dump(), "f").names_dtype);
}

TEST_CASE("of quantised checkpoints, fp8 in blocks is taken and the others are named") {
  const auto quantised = [](const json& value) {
    return with(deepseek(), "quantization_config", value);
  };
  const auto config = parse_checkpoint_config(
      quantised({{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {64, 256}}})
          .dump(),
      "f");
  CHECK(config.is_fp8);
  CHECK(config.model == parse(deepseek()));
  CHECK(config.block_rows == 64);
  CHECK(config.block_cols == 256);
  const auto usual = parse_checkpoint_config(quantised({{"quant_method", "fp8"}}).dump(), "f");
  CHECK(usual.block_rows == 128);
  CHECK(usual.block_cols == 128);
  CHECK_FALSE(parse_checkpoint_config(deepseek().dump(), "f").is_fp8);
  for (const char* method :
       {"awq", "gptq", "compressed-tensors", "mxfp4", "bitsandbytes", "fbgemm_fp8", "modelopt"}) {
    check_refused(quantised({{"quant_method", method}}), "quantization_config", method);
  }
  check_refused(quantised({{"bits", 4}}), "quantization_config", "quant_method");
  check_refused(quantised("fp8"), "quantization_config", "object");
  check_refused(quantised({{"quant_method", "fp8"}, {"fmt", "e5m2"}}), "quantization_config",
                "e5m2");
  for (const json& size : {json(128), json({128}), json({0, 128}), json({128, -1}), json("128")}) {
    check_refused(quantised({{"quant_method", "fp8"}, {"weight_block_size", size}}),
                  "quantization_config", "weight_block_size");
  }
  check_refused(with(llama(), "quantization", {{"bits", 4}}), "quantization", "MLX");
  check_refused(with(llama(), "compression_config", json::object()), "compression_config",
                "compressed-tensors");
}
