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

TEST_CASE("a published Llama config gives the preset of that model") {
  CHECK(parse(llama()) == preset_config("llama-3.1-8b"));
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

TEST_CASE("absent and null fields take transformers' defaults") {
  CHECK(parse(without(llama(), "num_key_value_heads")).kv_heads == 32);
  CHECK(parse(with(llama(), "head_dim", nullptr)).head_dim == 128);
  CHECK_FALSE(parse(without(llama(), "tie_word_embeddings")).tied_embeddings);
  CHECK(parse(with(without(llama(), "torch_dtype"), "dtype", "float16")).dtype == DType::kF16);
  CHECK(parse(without(llama(), "architectures")).architecture == Architecture::kLlama);
  CHECK(parse(without(llama(), "model_type")).architecture == Architecture::kLlama);
  CHECK(parse(without(without(moe(), "mlp_only_layers"), "decoder_sparse_step")) ==
        preset_config("qwen3-30b-a3b"));
  auto qwen3 = json::parse(config_to_json(preset_config("qwen3-4b")));
  CHECK(parse(without(qwen3, "head_dim")).head_dim == 128);
}

TEST_CASE("qwen2 always has biases of q, k and v") {
  const auto qwen2 = json::parse(config_to_json(preset_config("tiny-dense-bias")));
  CHECK(parse(qwen2).attention_bias);
  CHECK(parse(with(qwen2, "attention_bias", false)).attention_bias);
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
  for (const char* field : {"num_hidden_layers", "hidden_size", "num_attention_heads",
                            "intermediate_size", "vocab_size", "torch_dtype"}) {
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
}

TEST_CASE("models that we cannot lay out are refused") {
  check_refused(with(llama(), "architectures", {"MistralForCausalLM"}), "architectures", "Mistral");
  check_refused(with(llama(), "architectures", json::array()), "architectures", "[]");
  check_refused(with(llama(), "architectures", "LlamaForCausalLM"), "architectures", "one");
  check_refused(with(llama(), "model_type", "qwen3"), "model_type", "contradicts");
  check_refused(with(llama(), "model_type", "gpt2"), "model_type", "gpt2");
  check_refused(without(without(llama(), "model_type"), "architectures"), "architectures",
                "missing");
  check_refused(with(llama(), "attention_bias", true), "attention_bias", "o_proj");
  check_refused(with(llama(), "mlp_bias", true), "mlp_bias", "MLP");
  check_refused(with(llama(), "torch_dtype", "int8"), "torch_dtype", "int8");
  check_refused(with(llama(), "quantization_config", {{"quant_method", "fp8"}}),
                "quantization_config", "fp8");
  check_refused(with(llama(), "tie_word_embeddings", "yes"), "tie_word_embeddings",
                "true or false");
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
  test::check_refused([&] { (void)keep_first_layers(config, 0, "the-model"); },
                      {"--layers 0", "the-model", "12"});
  test::check_refused([&] { (void)keep_first_layers(config, 13, "the-model"); },
                      {"--layers 13", "the-model", "12"});
}
