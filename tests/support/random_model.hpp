#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "model/catalogue.hpp"
#include "model/config.hpp"
#include "support/oracle.hpp"

namespace awex::test {

/// Random choices that are the same on every machine: the standard's distributions are not.
class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}

  /// A number below `count` (> 0).
  [[nodiscard]] uint64_t below(uint64_t count) { return engine_() % count; }
  [[nodiscard]] uint64_t between(uint64_t low, uint64_t high) {
    return low + below(high - low + 1);
  }
  [[nodiscard]] bool one_in(uint64_t count) { return below(count) == 0; }
  [[nodiscard]] uint64_t one_of(std::initializer_list<uint64_t> values) {
    return *(values.begin() + below(values.size()));
  }
  template <class T>
  [[nodiscard]] T any_of(std::initializer_list<T> values) {
    return *(values.begin() + below(values.size()));
  }
  template <class T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::mt19937_64 engine_;
};

/// What models of a family have: a random model of it is of these.
struct RandomFamily {
  enum class Odds : uint8_t { kNever, kMaybe, kAlways };
  enum class Experts : uint8_t { kNone, kEverywhere, kSparse, kBesideShared };

  const char* name;
  Odds attention_bias = Odds::kNever;
  Odds qk_norm = Odds::kNever;
  bool latent = false;
  Experts experts = Experts::kNone;
  bool out_bias = false;         ///< Maybe one on o_proj.
  bool shared_hidden = false;    ///< Some engine takes no heads but those that share hidden.
  bool gated_shared = false;     ///< A shared expert of any width, with a gate.
  bool as_intermediate = false;  ///< Experts are as wide as the config's intermediate_size.
};

/// One line a family; the names come from the sources of transformers, not from the product.
inline constexpr RandomFamily kRandomFamilies[] = {
    {.name = "llama"},
    {.name = "qwen2", .attention_bias = RandomFamily::Odds::kAlways, .shared_hidden = true},
    {.name = "qwen3", .qk_norm = RandomFamily::Odds::kAlways},
    {.name = "qwen3_moe",
     .qk_norm = RandomFamily::Odds::kAlways,
     .experts = RandomFamily::Experts::kSparse},
    {.name = "deepseek_v3", .latent = true, .experts = RandomFamily::Experts::kBesideShared},
    {.name = "glm4_moe",
     .attention_bias = RandomFamily::Odds::kMaybe,
     .qk_norm = RandomFamily::Odds::kMaybe,
     .experts = RandomFamily::Experts::kBesideShared},
    {.name = "mistral"},
    {.name = "mixtral",
     .experts = RandomFamily::Experts::kEverywhere,
     .shared_hidden = true,
     .as_intermediate = true},
    {.name = "qwen2_moe",
     .attention_bias = RandomFamily::Odds::kMaybe,
     .experts = RandomFamily::Experts::kSparse,
     .shared_hidden = true,
     .gated_shared = true},
    {.name = "seed_oss", .attention_bias = RandomFamily::Odds::kMaybe, .out_bias = true},
    {.name = "mimo", .attention_bias = RandomFamily::Odds::kAlways, .shared_hidden = true},
    {.name = "glm4_moe_lite", .latent = true, .experts = RandomFamily::Experts::kBesideShared},
};

inline bool has(Dice& dice, RandomFamily::Odds odds) {
  return odds == RandomFamily::Odds::kAlways ||
         (odds == RandomFamily::Odds::kMaybe && dice.one_in(2));
}

inline void add_random_experts(Dice& dice, const RandomFamily& family, ModelConfig& config) {
  if (family.experts == RandomFamily::Experts::kNone) return;
  config.experts = dice.one_of({1, 2, 3, 4, 6, 8});
  config.experts_per_token = 1;
  config.moe_intermediate = family.as_intermediate ? config.intermediate : dice.one_of({8, 12, 24});
  if (family.experts == RandomFamily::Experts::kSparse) {
    config.decoder_sparse_step = dice.between(1, 2);
    if (dice.one_in(3)) config.mlp_only_layers.insert(dice.below(config.layers));
  }
  if (family.gated_shared) {
    config.shared_experts = 1;
    config.shared_intermediate = dice.one_of({4, 12, 40});
    config.has_shared_expert_gate = true;
  }
  if (family.experts != RandomFamily::Experts::kBesideShared) return;
  config.shared_experts = dice.between(1, 2);
  config.has_score_correction_bias = true;
  config.first_k_dense_replace = dice.below(config.layers + 1);
}

inline void add_random_latent_attention(Dice& dice, ModelConfig& config) {
  config.kv_heads = config.heads;
  config.head_dim = 0;
  config.q_lora_rank = dice.one_of({0, 5, 8, 12});
  config.kv_lora_rank = dice.one_of({3, 8, 10});
  config.qk_nope_head_dim = dice.between(1, 4);
  config.qk_rope_head_dim = dice.one_of({2, 4});
  config.v_head_dim = dice.between(1, 4);
}

/// A twentieth of the cases where a sanitizer makes each many times slower, for what it finds is
/// found in any of them.
#ifdef __SANITIZE_ADDRESS__
inline constexpr int kShareOfCases = 20;
#else
inline constexpr int kShareOfCases = 1;
#endif

/// How many random cases a test runs, at least one. AWEX_CASES=N in the environment makes them N
/// times as many, for a night by hand.
[[nodiscard]] inline int random_cases(int usual) {
  const char* times = std::getenv("AWEX_CASES");
  return (usual * (times == nullptr ? 1 : std::stoi(times)) + kShareOfCases - 1) / kShareOfCases;
}

/// A model of some thousand elements of any family and dtype. Its sizes divide by some of 1,
/// 2, 3, 4, 6 and 8; hidden, which no engine splits, may be any number.
[[nodiscard]] inline ModelConfig random_model(Dice& dice) {
  ModelConfig config;
  const RandomFamily& family = kRandomFamilies[dice.below(std::size(kRandomFamilies))];
  config.family = family.name;
  config.dtype = dice.one_in(4) ? DType::kF32 : DType::kBf16;
  config.layers = dice.one_in(2) ? dice.between(1, 3) : dice.one_of({4, 6, 8});
  config.hidden = dice.one_of({1, 3, 5, 8});
  config.kv_heads = dice.one_of({1, 2, 3, 4, 6, 8});
  config.heads = config.kv_heads * dice.one_of({1, 2, 3, 4});
  config.head_dim = dice.one_of({1, 2, 4, 6});
  // Larger models would take the tests long.
  const uint64_t all_heads = config.heads * config.head_dim;
  if (family.shared_hidden && all_heads <= 16) config.hidden = all_heads;
  config.intermediate = dice.one_of({4, 6, 24, 48});
  config.vocab = dice.one_of({1, 60, 64, 129, 150, 192, 257, 320, 384});
  config.tied_embeddings = dice.one_in(2);
  config.attention_bias = has(dice, family.attention_bias);
  config.attention_out_bias = family.out_bias && dice.one_in(2);
  config.qk_norm = has(dice, family.qk_norm);
  add_random_experts(dice, family, config);
  if (family.latent) add_random_latent_attention(dice, config);
  return config;
}

/// Whether the model can be spread by the engine over so many ranks at all.
[[nodiscard]] inline bool divides(const EngineCase& engine, const Catalogue& catalogue,
                                  uint64_t ranks) {
  try {
    for (uint64_t rank = 0; rank < ranks; ++rank) {
      (void)expected_contents(engine, catalogue, rank, ranks);
    }
    return true;
  } catch (const DoesNotDivide&) {
    return false;
  }
}

/// Sets an option to one of `values`, most often leaving it out.
inline void maybe(Dice& dice, EngineCase& engine, const std::string& key,
                  std::initializer_list<const char*> values) {
  if (dice.one_in(2)) engine.options[key] = dice.any_of<const char*>(values);
}

inline std::string random_on_off(Dice& dice) { return dice.one_in(2) ? "on" : "off"; }

/// A custom pipeline layout: any number of layers, also none, on each chunk.
[[nodiscard]] inline std::string random_pipeline_layout(Dice& dice, uint64_t layers,
                                                        uint64_t chunks) {
  std::vector<uint64_t> sizes(chunks, 0);
  for (uint64_t layer = 0; layer < layers; ++layer) ++sizes[dice.below(chunks)];
  std::string text = "E";
  for (uint64_t chunk = 0; chunk < chunks; ++chunk) {
    if (chunk > 0) text += "|";
    if (sizes[chunk] == 0) continue;
    const std::string plain(sizes[chunk], 't');
    text += dice.any_of<std::string>(
        {plain, fmt::format("t*{}", sizes[chunk]), fmt::format("(t)*{}", sizes[chunk])});
  }
  return text + dice.any_of<std::string>({"L", "L", "mL", ",L"});
}

/// How many of the layers an uneven end stage holds: most often so that `middle` stages of equal
/// size take the rest.
inline std::string random_end_stage(Dice& dice, uint64_t layers, uint64_t middle) {
  const uint64_t most = layers / (middle + 1);
  if (most == 0 || dice.one_in(4)) return std::to_string(dice.between(1, layers));
  return std::to_string(layers - middle * dice.between(1, most));
}

inline void choose_pipeline(Dice& dice, EngineCase& engine, uint64_t layers) {
  const uint64_t pp = dice.one_of({1, 1, 2, 3, 4});
  const uint64_t vpp = pp > 1 ? dice.one_of({1, 1, 2}) : 1;
  if (pp > 1) engine.options["pp"] = std::to_string(pp);
  if (pp > 1 && dice.one_in(4)) {
    engine.options["layout"] = random_pipeline_layout(dice, layers, pp * vpp);
    return;
  }
  if (vpp > 1) engine.options["vpp"] = std::to_string(vpp);
  if (pp == 1) return;
  switch (dice.below(4)) {
    case 0:
      return;
    case 1:
      engine.options["account_for_embedding"] = random_on_off(dice);
      engine.options["account_for_loss"] = random_on_off(dice);
      return;
    case 2:
      engine.options["first"] = random_end_stage(dice, layers, pp - 1);
      return;
    default:
      engine.options["last"] = random_end_stage(dice, layers, pp - 1);
      if (dice.one_in(2)) engine.options["first"] = std::to_string(dice.between(1, layers));
  }
}

[[nodiscard]] inline EngineCase random_megatron(Dice& dice, const Catalogue& catalogue) {
  const ModelConfig& config = catalogue.config();
  EngineCase engine{"megatron", dice.one_of({1, 2, 3, 4, 6, 8})};
  choose_pipeline(dice, engine, config.layers);
  maybe(dice, engine, "cp", {"1", "2"});
  maybe(dice, engine, "pad_vocab", {"1", "64", "128"});
  maybe(dice, engine, "pad_with_tp", {"on", "off"});
  maybe(dice, engine, "spec", {"te", "local"});
  if (config.experts == 0) return engine;
  maybe(dice, engine, "ep", {"1", "2", "3", "4"});
  maybe(dice, engine, "etp", {"1", "2", "4"});
  maybe(dice, engine, "experts", {"grouped", "sequential"});
  return engine;
}

[[nodiscard]] inline EngineCase random_fsdp(Dice& dice) {
  EngineCase engine{"fsdp", dice.one_of({1, 1, 1, 2, 3, 4})};
  maybe(dice, engine, "shard", {"1", "2", "3", "4", "5", "6", "7", "8"});
  maybe(dice, engine, "replicate", {"1", "2", "3"});
  return engine;
}

/// Dtypes of the receiver: most often the model's, and fp8 with blocks as small as the models.
inline void choose_dtypes(Dice& dice, EngineCase& engine) {
  if (engine.engine != "hf" && dice.one_in(6)) {
    engine.options["router_dtype"] = dice.any_of<const char*>({"bf16", "fp16", "fp32"});
  }
  if (dice.one_in(2)) return;
  engine.options["dtype"] = dice.any_of<const char*>({"bf16", "fp16", "fp32", "fp8", "fp8", "fp8"});
  if (engine.options["dtype"] != "fp8" || dice.one_in(8)) return;
  engine.options["block"] = dice.any_of<const char*>({"1", "2", "2", "3", "4", "6"});
}

[[nodiscard]] inline EngineCase random_sglang(Dice& dice, const Catalogue& catalogue) {
  const ModelConfig& config = catalogue.config();
  EngineCase engine{"sglang", dice.one_of({1, 2, 3, 4, 6, 8})};
  maybe(dice, engine, "pp", {"1", "2", "3"});
  if (dice.one_in(2)) {
    engine.options["attn_dp"] = std::to_string(dice.one_of({1, 2, 3, 4}));
    engine.options["embed"] = dice.any_of<const char*>({"tp", "attn_tp", "replicated"});
    engine.options["dp_lm_head"] = random_on_off(dice);
  }
  maybe(dice, engine, "dense_mlp", {"tp", "replicated"});
  choose_dtypes(dice, engine);
  if (engine.text("dtype", "") == "fp8") engine.options["keeps_fp8"] = "on";
  if (config.experts == 0) return engine;
  maybe(dice, engine, "ep", {"1", "2", "3", "4"});
  maybe(dice, engine, "shared_experts", {"tp", "replicated"});
  maybe(dice, engine, "fuse_shared", {"on", "off"});
  return engine;
}

[[nodiscard]] inline EngineCase random_vllm(Dice& dice, const Catalogue& catalogue) {
  EngineCase engine{"vllm", dice.one_of({1, 2, 3, 4, 6})};
  maybe(dice, engine, "pp", {"1", "2", "3"});
  maybe(dice, engine, "dp", {"1", "2", "3"});
  maybe(dice, engine, "version", {"0.23", "0.24", "0.32", "0.33"});
  choose_dtypes(dice, engine);
  if (engine.text("dtype", "") == "fp8") {
    engine.options["deep_gemm"] = "off";
    engine.options["moe_backend"] = "triton";
  }
  if (catalogue.config().tied_embeddings) maybe(dice, engine, "stored_head", {"on", "off"});
  if (catalogue.config().experts == 0) return engine;
  maybe(dice, engine, "ep", {"on", "off"});
  maybe(dice, engine, "shared_experts", {"tp", "replicated"});
  return engine;
}

/// A trainer as it comes, whether or not it can spread the model over any ranks.
[[nodiscard]] inline EngineCase any_trainer(Dice& dice, const Catalogue& catalogue) {
  return dice.one_in(3) ? random_fsdp(dice) : random_megatron(dice, catalogue);
}
[[nodiscard]] inline EngineCase any_inference(Dice& dice, const Catalogue& catalogue) {
  if (dice.one_in(24)) {
    EngineCase hf;
    choose_dtypes(dice, hf);
    return hf;
  }
  return dice.one_in(2) ? random_vllm(dice, catalogue) : random_sglang(dice, catalogue);
}

/// An engine out of `any` that can spread the model over `ranks` ranks, or "hf", which always can.
template <class Any>
[[nodiscard]] EngineCase random_engine(Dice& dice, Any any, const Catalogue& catalogue,
                                       uint64_t ranks) {
  if (dice.one_in(8)) return {"hf"};
  constexpr int kTries = 60;
  for (int i = 0; i < kTries; ++i) {
    EngineCase engine = any(dice, catalogue);
    if (divides(engine, catalogue, ranks)) return engine;
  }
  return {"hf"};
}

}  // namespace awex::test
