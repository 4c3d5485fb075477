#include "model/catalogue.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "model/presets.hpp"
#include "model/refusal.hpp"

using namespace awex;

TEST_CASE("published models have their published number of parameters") {
  const std::vector<std::pair<const char*, uint64_t>> published{
      {"qwen3-0.6b", 596'049'920},          {"qwen3-4b", 4'022'468'096},
      {"qwen3-8b", 8'190'735'360},          {"qwen3-30b-a3b", 30'532'122'624},
      {"qwen3-235b-a22b", 235'093'634'560}, {"llama-3.1-8b", 8'030'261'248}};
  for (const auto& [name, parameters] : published) {
    CAPTURE(name);
    const auto catalogue = make_catalogue(name, preset_config(name));
    CHECK(catalogue.elements() == parameters);
    CHECK(catalogue.bytes() == 2 * parameters);
  }
}

TEST_CASE("a small model's tensors are those of transformers") {
  ModelConfig config;
  config.architecture = Architecture::kQwen3Moe;
  config.layers = 2;
  config.hidden = 10;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 3;
  config.intermediate = 7;
  config.vocab = 11;
  config.qk_norm = true;
  config.experts = 2;
  config.moe_intermediate = 5;
  config.experts_per_token = 1;
  config.mlp_only_layers = {1};
  std::string listing;
  const auto catalogue = make_catalogue("m", config);
  for (const auto& tensor : catalogue.tensors()) {
    listing += tensor.is_vector
                   ? fmt::format("{} [{}]\n", tensor.name, tensor.rows)
                   : fmt::format("{} [{},{}]\n", tensor.name, tensor.rows, tensor.cols);
  }
  CHECK(listing == R"(model.embed_tokens.weight [11,10]
model.layers.0.input_layernorm.weight [10]
model.layers.0.self_attn.q_proj.weight [12,10]
model.layers.0.self_attn.k_proj.weight [6,10]
model.layers.0.self_attn.v_proj.weight [6,10]
model.layers.0.self_attn.o_proj.weight [10,12]
model.layers.0.self_attn.q_norm.weight [3]
model.layers.0.self_attn.k_norm.weight [3]
model.layers.0.post_attention_layernorm.weight [10]
model.layers.0.mlp.gate.weight [2,10]
model.layers.0.mlp.experts.0.gate_proj.weight [5,10]
model.layers.0.mlp.experts.0.up_proj.weight [5,10]
model.layers.0.mlp.experts.0.down_proj.weight [10,5]
model.layers.0.mlp.experts.1.gate_proj.weight [5,10]
model.layers.0.mlp.experts.1.up_proj.weight [5,10]
model.layers.0.mlp.experts.1.down_proj.weight [10,5]
model.layers.1.input_layernorm.weight [10]
model.layers.1.self_attn.q_proj.weight [12,10]
model.layers.1.self_attn.k_proj.weight [6,10]
model.layers.1.self_attn.v_proj.weight [6,10]
model.layers.1.self_attn.o_proj.weight [10,12]
model.layers.1.self_attn.q_norm.weight [3]
model.layers.1.self_attn.k_norm.weight [3]
model.layers.1.post_attention_layernorm.weight [10]
model.layers.1.mlp.gate_proj.weight [7,10]
model.layers.1.mlp.up_proj.weight [7,10]
model.layers.1.mlp.down_proj.weight [10,7]
model.norm.weight [10]
lm_head.weight [11,10]
)");
}

TEST_CASE("tied embeddings have no lm_head and qwen2 has biases of q, k and v") {
  const auto tied = make_catalogue("m", preset_config("tiny-dense-tied"));
  CHECK_FALSE(tied.find("lm_head.weight"));
  const auto biased = make_catalogue("m", preset_config("tiny-dense-bias"));
  const auto& bias = biased.tensors()[biased.index_of("model.layers.0.self_attn.k_proj.bias")];
  CHECK(bias.is_vector);
  CHECK(bias.rows == 12 * 16);
  CHECK_FALSE(biased.find("model.layers.0.self_attn.o_proj.bias"));
}

TEST_CASE("decoder_sparse_step makes every n-th layer an expert layer") {
  auto config = preset_config("tiny-moe");
  config.decoder_sparse_step = 3;
  config.mlp_only_layers = {5};
  std::set<uint64_t> moe_layers;
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) moe_layers.insert(layer);
  }
  CHECK(moe_layers == std::set<uint64_t>{2, 8, 11});
}

TEST_CASE("a fingerprint tells models apart that differ in one property of one tensor") {
  const auto config = preset_config("tiny-dense");
  const auto original = make_catalogue("a", config);
  CHECK(make_catalogue("b", config).fingerprint() == original.fingerprint());
  std::set<uint64_t> fingerprints{original.fingerprint()};
  const auto add_changed = [&](auto change) {
    auto tensors = original.tensors();
    change(tensors[5]);
    fingerprints.insert(Catalogue("a", config, std::move(tensors)).fingerprint());
  };
  add_changed([](TensorInfo& tensor) { tensor.name += "x"; });
  add_changed([](TensorInfo& tensor) { tensor.dtype = DType::kF16; });
  add_changed([](TensorInfo& tensor) { std::swap(tensor.rows, tensor.cols); });
  add_changed([](TensorInfo& tensor) { tensor.is_vector = !tensor.is_vector; });
  CHECK(fingerprints.size() == 5);
}

TEST_CASE("unknown tensors and presets are refused by name") {
  test::check_refused([] { (void)preset_config("qwen3-4B"); }, {"qwen3-4B"});
  const auto catalogue = make_catalogue("tiny-dense", preset_config("tiny-dense"));
  test::check_refused([&] { (void)catalogue.index_of("model.nothing"); },
                      {"tiny-dense", "model.nothing"});
}

TEST_CASE("the small presets divide by 2, 3 and 4, and need vocabulary padding") {
  for (const auto& name : preset_names()) {
    if (!name.starts_with("tiny-")) continue;
    CAPTURE(name);
    const auto config = preset_config(name);
    for (const uint64_t size : {config.layers, config.hidden, config.heads, config.kv_heads,
                                config.intermediate, config.experts, config.moe_intermediate}) {
      CHECK(size % 12 == 0);
    }
    CHECK(config.vocab % 64 != 0);
  }
}
