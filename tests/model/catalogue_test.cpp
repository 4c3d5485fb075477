#include "model/catalogue.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "model/presets.hpp"
#include "model/refusal.hpp"

using namespace awex;

namespace {

/// One line a tensor: name, shape as in files, and its dtype where it is not the model's.
std::string listing(const ModelConfig& config) {
  std::string result;
  const auto catalogue = make_catalogue("m", config);
  for (const auto& tensor : catalogue.tensors()) {
    result += tensor.is_vector ? fmt::format("{} [{}]", tensor.name, tensor.rows)
                               : fmt::format("{} [{},{}]", tensor.name, tensor.rows, tensor.cols);
    if (tensor.dtype != config.dtype) result += fmt::format(" {}", dtype_name(tensor.dtype));
    result += "\n";
  }
  return result;
}

std::vector<std::pair<std::string, uint64_t>> published_parameters() {
  std::ifstream in(AWEX_PUBLISHED_PARAMETERS);
  REQUIRE(in.is_open());
  std::vector<std::pair<std::string, uint64_t>> published;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with('#')) continue;
    const auto space = line.find(' ');
    published.emplace_back(line.substr(0, space), std::stoull(line.substr(space + 1)));
  }
  return published;
}

/// Bytes that fp32 biases take beyond those of 16-bit elements.
uint64_t extra_bytes(const ModelConfig& config) {
  return config.has_score_correction_bias
             ? 2 * config.experts * (config.layers - config.first_k_dense_replace)
             : 0;
}

/// What the small models below have in common: a dense layer, then one of two experts.
ModelConfig small_with_shared_experts(const std::string& family) {
  ModelConfig config;
  config.family = family;
  config.layers = 2;
  config.hidden = 10;
  config.heads = 4;
  config.intermediate = 7;
  config.vocab = 11;
  config.experts = 2;
  config.moe_intermediate = 5;
  config.experts_per_token = 1;
  config.shared_experts = 3;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

ModelConfig small_mla() {
  auto config = small_with_shared_experts("deepseek_v3");
  config.kv_heads = 4;
  config.q_lora_rank = 6;
  config.kv_lora_rank = 8;
  config.qk_nope_head_dim = 3;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 9;
  return config;
}

}  // namespace

TEST_CASE("published models have their published number of parameters") {
  const auto published = published_parameters();
  for (const auto& [name, parameters] : published) {
    CAPTURE(name);
    const auto config = preset_config(name);
    const auto catalogue = make_catalogue(name, config);
    CHECK(catalogue.elements() == parameters);
    CHECK(catalogue.bytes() == 2 * parameters + extra_bytes(config));
  }
  for (const auto& name : preset_names()) {
    const auto is_listed = [&](const auto& entry) { return entry.first == name; };
    CHECK_MESSAGE(
        (name.starts_with("tiny-") || std::any_of(published.begin(), published.end(), is_listed)),
        name);
  }
}

TEST_CASE("a small model's tensors are those of transformers") {
  ModelConfig config;
  config.family = "qwen3_moe";
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
  CHECK(listing(config) == R"(model.embed_tokens.weight [11,10]
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

TEST_CASE("latent attention and shared experts have the tensors of transformers") {
  CHECK(listing(small_mla()) == R"(model.embed_tokens.weight [11,10]
model.layers.0.input_layernorm.weight [10]
model.layers.0.self_attn.q_a_proj.weight [6,10]
model.layers.0.self_attn.q_a_layernorm.weight [6]
model.layers.0.self_attn.q_b_proj.weight [20,6]
model.layers.0.self_attn.kv_a_proj_with_mqa.weight [10,10]
model.layers.0.self_attn.kv_a_layernorm.weight [8]
model.layers.0.self_attn.kv_b_proj.weight [48,8]
model.layers.0.self_attn.o_proj.weight [10,36]
model.layers.0.post_attention_layernorm.weight [10]
model.layers.0.mlp.gate_proj.weight [7,10]
model.layers.0.mlp.up_proj.weight [7,10]
model.layers.0.mlp.down_proj.weight [10,7]
model.layers.1.input_layernorm.weight [10]
model.layers.1.self_attn.q_a_proj.weight [6,10]
model.layers.1.self_attn.q_a_layernorm.weight [6]
model.layers.1.self_attn.q_b_proj.weight [20,6]
model.layers.1.self_attn.kv_a_proj_with_mqa.weight [10,10]
model.layers.1.self_attn.kv_a_layernorm.weight [8]
model.layers.1.self_attn.kv_b_proj.weight [48,8]
model.layers.1.self_attn.o_proj.weight [10,36]
model.layers.1.post_attention_layernorm.weight [10]
model.layers.1.mlp.gate.weight [2,10]
model.layers.1.mlp.gate.e_score_correction_bias [2] F32
model.layers.1.mlp.experts.0.gate_proj.weight [5,10]
model.layers.1.mlp.experts.0.up_proj.weight [5,10]
model.layers.1.mlp.experts.0.down_proj.weight [10,5]
model.layers.1.mlp.experts.1.gate_proj.weight [5,10]
model.layers.1.mlp.experts.1.up_proj.weight [5,10]
model.layers.1.mlp.experts.1.down_proj.weight [10,5]
model.layers.1.mlp.shared_experts.gate_proj.weight [15,10]
model.layers.1.mlp.shared_experts.up_proj.weight [15,10]
model.layers.1.mlp.shared_experts.down_proj.weight [10,15]
model.norm.weight [10]
lm_head.weight [11,10]
)");
  auto without_q_rank = small_mla();
  without_q_rank.q_lora_rank = 0;
  without_q_rank.mtp_layers = 1;
  const auto names = listing(without_q_rank);
  CHECK(names.find("model.layers.1.self_attn.q_proj.weight [20,10]\n") != std::string::npos);
  CHECK(names.find("q_a_") == std::string::npos);
  CHECK(names.find("q_b_") == std::string::npos);
  CHECK(names.find("model.layers.2.") == std::string::npos);
}

TEST_CASE("GLM-4.5 has biases of q, k and v, norms if its config says so, and shared experts") {
  auto config = small_with_shared_experts("glm4_moe");
  config.kv_heads = 2;
  config.head_dim = 3;
  config.attention_bias = true;
  CHECK(listing(config).find("norm.weight [3]") == std::string::npos);
  config.qk_norm = true;
  const auto names = listing(config);
  const auto begin = names.find("model.layers.1.");
  const auto end = names.find("model.layers.1.mlp.experts.0.");
  REQUIRE(end != std::string::npos);
  CHECK(names.substr(begin, end - begin) == R"(model.layers.1.input_layernorm.weight [10]
model.layers.1.self_attn.q_proj.weight [12,10]
model.layers.1.self_attn.q_proj.bias [12]
model.layers.1.self_attn.k_proj.weight [6,10]
model.layers.1.self_attn.k_proj.bias [6]
model.layers.1.self_attn.v_proj.weight [6,10]
model.layers.1.self_attn.v_proj.bias [6]
model.layers.1.self_attn.o_proj.weight [10,12]
model.layers.1.self_attn.q_norm.weight [3]
model.layers.1.self_attn.k_norm.weight [3]
model.layers.1.post_attention_layernorm.weight [10]
model.layers.1.mlp.gate.weight [2,10]
model.layers.1.mlp.gate.e_score_correction_bias [2] F32
)");
  CHECK(names.find("model.layers.1.mlp.shared_experts.down_proj.weight [10,15]\n") !=
        std::string::npos);
}

TEST_CASE("tied embeddings have no lm_head and qwen2 has biases of q, k and v") {
  const auto tied = make_catalogue("m", preset_config("tiny-dense-tied"));
  CHECK_FALSE(tied.find("lm_head.weight"));
  const auto biased = make_catalogue("m", preset_config("tiny-dense-bias"));
  const auto& bias = biased.tensors()[biased.index_of("model.layers.0.self_attn.k_proj.bias")];
  CHECK(bias.is_vector);
  CHECK(bias.rows == 12 * 32);
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
  config.first_k_dense_replace = 3;
  CHECK_FALSE(config.is_moe_layer(2));
  CHECK(config.is_moe_layer(8));
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
  for (const char* name : {"Qwen3-8B", "qwen3-8", "qwen3_8b"}) {
    try {
      (void)preset_config(name);
      FAIL_CHECK("nothing was refused");
    } catch (const Error& error) {
      CHECK(error.hint() == "did you mean \"qwen3-8b\"?");
    }
  }
  using Names = std::vector<std::string>;
  CHECK(presets_like("Qwen/Qwen3-30B-A3B-Instruct-2507") == Names{"qwen3-30b-a3b"});
  CHECK(presets_like("meta-llama/Llama-3.1-8B-Instruct") == Names{"llama-3.1-8b"});
  const auto catalogue = make_catalogue("tiny-dense", preset_config("tiny-dense"));
  test::check_refused([&] { (void)catalogue.index_of("model.nothing"); },
                      {"tiny-dense", "model.nothing"});
}

TEST_CASE("the small presets divide by 2, 3 and 4, and need vocabulary padding") {
  for (const auto& name : preset_names()) {
    if (!name.starts_with("tiny-")) continue;
    CAPTURE(name);
    const auto config = preset_config(name);
    for (const uint64_t size :
         {config.layers, config.hidden, config.heads, config.kv_heads, config.intermediate,
          config.experts, config.moe_intermediate, config.q_lora_rank, config.kv_lora_rank,
          config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim}) {
      CHECK(size % 12 == 0);
    }
    CHECK(config.head_dim == (config.is_mla() ? 0 : 32));
    if (config.family == "qwen2") {
      CHECK(config.head_dim * config.heads == config.hidden);  // as vLLM's Qwen2 has it
    }
    CHECK(config.vocab % 64 != 0);
    CHECK((config.vocab + 63) / 64 * 64 % 12 == 0);
  }
}
