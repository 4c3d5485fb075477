#pragma once

#include <cstdint>
#include <initializer_list>
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
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::mt19937_64 engine_;
};

/// A model of a few thousand elements of any architecture and dtype. Its sizes divide by some of 1,
/// 2, 3, 4, 6 and 8; hidden, which no engine splits, may be any number.
[[nodiscard]] inline ModelConfig random_model(Dice& dice) {
  ModelConfig config;
  config.architecture =
      std::initializer_list<Architecture>{Architecture::kLlama, Architecture::kQwen2,
                                          Architecture::kQwen3, Architecture::kQwen3Moe}
          .begin()[dice.below(4)];
  config.dtype = dice.one_in(4) ? DType::kF32 : DType::kBf16;
  config.layers = dice.between(1, 3);
  config.hidden = dice.one_of({1, 3, 5, 8});
  config.kv_heads = dice.one_of({1, 2, 3, 4, 6, 8});
  config.heads = config.kv_heads * dice.one_of({1, 2, 3, 4, 8});
  config.head_dim = dice.one_of({1, 2, 4, 6});
  config.intermediate = dice.one_of({4, 6, 24, 48});
  config.vocab = dice.one_of({1, 60, 64, 129, 150, 192, 257, 320, 384});
  config.tied_embeddings = dice.one_in(2);
  config.attention_bias = config.architecture == Architecture::kQwen2;
  config.qk_norm =
      config.architecture == Architecture::kQwen3 || config.architecture == Architecture::kQwen3Moe;
  if (config.architecture == Architecture::kQwen3Moe) {
    config.experts = dice.between(1, 5);
    config.experts_per_token = 1;
    config.moe_intermediate = dice.one_of({8, 12, 24});
    config.decoder_sparse_step = dice.between(1, 2);
    if (dice.one_in(3)) config.mlp_only_layers.insert(dice.below(config.layers));
  }
  return config;
}

/// Whether the model can be spread by the engine at all.
[[nodiscard]] inline bool divides(const EngineCase& engine, const Catalogue& catalogue) {
  try {
    (void)expected_contents(engine, catalogue, 0);
    return true;
  } catch (const DoesNotDivide&) {
    return false;
  }
}

/// An engine out of `fused` and "hf" with a tp that divides both the ranks and the model; half of
/// the time the largest such tp.
[[nodiscard]] inline EngineCase random_engine(Dice& dice, const std::string& fused,
                                              const Catalogue& catalogue, uint32_t ranks) {
  if (dice.one_in(6)) return {"hf", 1};
  std::vector<EngineCase> possible;
  for (uint64_t tp = 1; tp <= ranks; ++tp) {
    const EngineCase engine{fused, tp};
    if (ranks % tp == 0 && divides(engine, catalogue)) possible.push_back(engine);
  }
  return dice.one_in(2) ? possible.back() : possible.at(dice.below(possible.size()));
}

}  // namespace awex::test
