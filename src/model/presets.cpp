#include "model/presets.hpp"

#include <algorithm>
#include <cctype>

#include "base/error.hpp"
#include "base/nearest.hpp"

namespace awex {
namespace {

constexpr uint64_t kQwen3Vocab = 151936;

struct Preset {
  std::string name;
  ModelConfig config;
};

ModelConfig qwen3(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t intermediate,
                  bool tied) {
  ModelConfig config;
  config.architecture = Architecture::kQwen3;
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = intermediate;
  config.vocab = kQwen3Vocab;
  config.tied_embeddings = tied;
  config.qk_norm = true;
  return config;
}

ModelConfig qwen3_moe(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t intermediate,
                      uint64_t moe_intermediate) {
  auto config = qwen3(layers, hidden, heads, intermediate, false);
  config.architecture = Architecture::kQwen3Moe;
  config.kv_heads = 4;
  config.experts = 128;
  config.experts_per_token = 8;
  config.moe_intermediate = moe_intermediate;
  return config;
}

/// What DeepSeek-V3 and Kimi-K2 have in common.
ModelConfig deepseek_v3(uint64_t heads, uint64_t experts, uint64_t dense_layers, uint64_t vocab) {
  ModelConfig config;
  config.architecture = Architecture::kDeepseekV3;
  config.layers = 61;
  config.hidden = 7168;
  config.heads = heads;
  config.kv_heads = heads;
  config.intermediate = 18432;
  config.vocab = vocab;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.experts = experts;
  config.experts_per_token = 8;
  config.moe_intermediate = 2048;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = dense_layers;
  return config;
}

ModelConfig glm_4_5_air() {
  ModelConfig config;
  config.architecture = Architecture::kGlm4Moe;
  config.layers = 46;
  config.hidden = 4096;
  config.heads = 96;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = 10944;
  config.vocab = 151552;
  config.attention_bias = true;
  config.experts = 128;
  config.experts_per_token = 8;
  config.moe_intermediate = 1408;
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

ModelConfig glm_4_5() {
  auto config = glm_4_5_air();
  config.layers = 92;
  config.hidden = 5120;
  config.intermediate = 12288;
  config.qk_norm = true;
  config.experts = 160;
  config.moe_intermediate = 1536;
  config.first_k_dense_replace = 3;
  return config;
}

/// Qwen2.5, whose heads share the hidden size.
ModelConfig qwen2(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t kv_heads,
                  uint64_t intermediate, bool tied) {
  ModelConfig config;
  config.architecture = Architecture::kQwen2;
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate = intermediate;
  config.vocab = tied ? kQwen3Vocab : 152064;
  config.tied_embeddings = tied;
  config.attention_bias = true;
  return config;
}

ModelConfig llama(uint64_t layers, uint64_t hidden, uint64_t heads, uint64_t kv_heads,
                  uint64_t intermediate, bool tied) {
  ModelConfig config;
  config.architecture = Architecture::kLlama;
  config.layers = layers;
  config.hidden = hidden;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate = intermediate;
  config.vocab = 128256;
  config.tied_embeddings = tied;
  return config;
}

ModelConfig deepseek_llm_7b() {
  auto config = llama(30, 4096, 32, 32, 11008, false);
  config.vocab = 102400;
  return config;
}

ModelConfig moonlight() {
  auto config = deepseek_v3(16, 64, 1, 163840);
  config.layers = 27;
  config.hidden = 2048;
  config.intermediate = 11264;
  config.q_lora_rank = 0;
  config.experts_per_token = 6;
  config.moe_intermediate = 1408;
  config.shared_experts = 2;
  return config;
}

ModelConfig tiny(Architecture architecture, bool tied) {
  ModelConfig config;
  config.architecture = architecture;
  config.layers = 12;
  config.hidden = 96;
  config.heads = 24;
  config.kv_heads = 12;
  config.head_dim = 32;  // engines' attention takes no smaller heads
  config.intermediate = 192;
  config.vocab = 1129;  // padded to 1152 = 64 * 18, which divides by 2, 3 and 4
  config.tied_embeddings = tied;
  config.attention_bias = architecture == Architecture::kQwen2;
  config.qk_norm = architecture == Architecture::kQwen3 || architecture == Architecture::kQwen3Moe;
  return config;
}

/// Qwen2's heads share the hidden size in every engine.
ModelConfig tiny_dense_bias() {
  auto config = tiny(Architecture::kQwen2, false);
  config.heads = 12;
  config.hidden = config.heads * config.head_dim;
  return config;
}

ModelConfig tiny_moe(Architecture architecture, bool tied) {
  auto config = tiny(architecture, tied);
  config.experts = 12;
  config.experts_per_token = 4;
  config.moe_intermediate = 48;
  return config;
}

ModelConfig tiny_with_shared_expert(Architecture architecture) {
  auto config = tiny_moe(architecture, false);
  config.shared_experts = 1;
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = 1;
  return config;
}

ModelConfig tiny_mla() {
  auto config = tiny_with_shared_expert(Architecture::kDeepseekV3);
  config.kv_heads = config.heads;
  config.head_dim = 0;
  config.q_lora_rank = 48;
  config.kv_lora_rank = 36;
  config.qk_nope_head_dim = 24;
  config.qk_rope_head_dim = 12;
  config.v_head_dim = 36;
  return config;
}

ModelConfig tiny_glm() {
  auto config = tiny_with_shared_expert(Architecture::kGlm4Moe);
  config.attention_bias = true;
  config.qk_norm = true;
  return config;
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all{
      {"tiny-dense", tiny(Architecture::kQwen3, false)},
      {"tiny-dense-tied", tiny(Architecture::kQwen3, true)},
      {"tiny-dense-bias", tiny_dense_bias()},
      {"tiny-moe", tiny_moe(Architecture::kQwen3Moe, false)},
      {"tiny-moe-tied", tiny_moe(Architecture::kQwen3Moe, true)},
      {"tiny-mla", tiny_mla()},
      {"tiny-glm", tiny_glm()},
      {"qwen2.5-0.5b", qwen2(24, 896, 14, 2, 4864, true)},
      {"qwen2.5-1.5b", qwen2(28, 1536, 12, 2, 8960, true)},
      {"qwen2.5-3b", qwen2(36, 2048, 16, 2, 11008, true)},
      {"qwen2.5-7b", qwen2(28, 3584, 28, 4, 18944, false)},
      {"qwen2.5-14b", qwen2(48, 5120, 40, 8, 13824, false)},
      {"qwen2.5-32b", qwen2(64, 5120, 40, 8, 27648, false)},
      {"qwen2.5-72b", qwen2(80, 8192, 64, 8, 29568, false)},
      {"qwen3-0.6b", qwen3(28, 1024, 16, 3072, true)},
      {"qwen3-1.7b", qwen3(28, 2048, 16, 6144, true)},
      {"qwen3-4b", qwen3(36, 2560, 32, 9728, true)},
      {"qwen3-8b", qwen3(36, 4096, 32, 12288, false)},
      {"qwen3-14b", qwen3(40, 5120, 40, 17408, false)},
      {"qwen3-32b", qwen3(64, 5120, 64, 25600, false)},
      {"qwen3-30b-a3b", qwen3_moe(48, 2048, 32, 6144, 768)},
      {"qwen3-235b-a22b", qwen3_moe(94, 4096, 64, 12288, 1536)},
      {"llama-3.1-8b", llama(32, 4096, 32, 8, 14336, false)},
      {"llama-3.1-70b", llama(80, 8192, 64, 8, 28672, false)},
      {"llama-3.2-1b", llama(16, 2048, 32, 8, 8192, true)},
      {"llama-3.2-3b", llama(28, 3072, 24, 8, 8192, true)},
      {"llama-3.3-70b", llama(80, 8192, 64, 8, 28672, false)},
      {"deepseek-llm-7b", deepseek_llm_7b()},
      {"moonlight-16b-a3b", moonlight()},
      {"deepseek-v3", deepseek_v3(128, 256, 3, 129280)},
      {"kimi-k2", deepseek_v3(64, 384, 1, 163840)},
      {"glm-4.5-air", glm_4_5_air()},
      {"glm-4.5", glm_4_5()},
  };
  return all;
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& preset : presets()) names.push_back(preset.name);
  return names;
}

ModelConfig preset_config(std::string_view name) {
  for (const auto& preset : presets()) {
    if (preset.name == name) return preset.config;
  }
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  throw request_error(fmt::format("there is no preset \"{}\"", name),
                      suggestion(lower, preset_names()));
}

}  // namespace awex
