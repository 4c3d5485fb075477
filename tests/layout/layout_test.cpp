// Every layout against the oracle: names, shapes, places, contents, gaps and replica numbers.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "model/catalogue.hpp"
#include "support/oracle.hpp"
#include "support/random_model.hpp"

namespace awex::test {
namespace {

/// How the first thing that is wrong reads; empty when nothing is.
using Difference = std::string;

/// What an engine holds of a model.
Catalogue held_by(const std::string& spec, const Catalogue& model, bool trainer) {
  return trainer ? model : held_catalogue(spec, model);
}

std::unique_ptr<Layout> make_layout(const std::string& spec, const Catalogue& held, uint32_t ranks,
                                    bool trainer) {
  return trainer ? make_trainer_layout(spec, held, ranks)
                 : make_inference_layout(spec, held, ranks);
}

/// That of the canonical elements in it, or the vocabulary's where all is padding.
DType dtype_of(const IdMatrix& content, const Catalogue& catalogue, const EngineCase& engine) {
  const auto real = std::find_if(content.ids.begin(), content.ids.end(),
                                 [](Identity id) { return id != kPadding; });
  const std::string tensor = real == content.ids.end()
                                 ? "model.embed_tokens.weight"
                                 : catalogue.tensors().at(tensor_of(*real)).name;
  return expected_dtype(catalogue.config(), tensor, engine);
}

Difference compare_parameters(const RankLayout& layout, const RankContents& expected,
                              const Catalogue& catalogue, const EngineCase& engine) {
  std::set<std::string> seen;
  for (const Parameter& parameter : layout.parameters) {
    const auto content = expected.find(parameter.name);
    if (content == expected.end()) return fmt::format("unexpected \"{}\"", parameter.name);
    if (!seen.insert(parameter.name).second) return fmt::format("\"{}\" twice", parameter.name);
    if (parameter.rows != content->second.rows || parameter.cols != content->second.cols) {
      return fmt::format("\"{}\" is {} x {} instead of {} x {}", parameter.name, parameter.rows,
                         parameter.cols, content->second.rows, content->second.cols);
    }
    if (parameter.dtype != dtype_of(content->second, catalogue, engine)) {
      return parameter.name + ": wrong dtype";
    }
  }
  for (const auto& [name, content] : expected) {
    if (seen.count(name) == 0) return fmt::format("\"{}\" is missing", name);
  }
  return {};
}

/// Aligned, in the region, disjoint, and without more than alignment between them.
Difference check_offsets(const RankLayout& layout) {
  std::map<uint64_t, const Parameter*> by_offset;
  for (const Parameter& parameter : layout.parameters) {
    if (parameter.offset_bytes % kParameterAlignment != 0) return parameter.name + ": not aligned";
    if (!by_offset.emplace(parameter.offset_bytes, &parameter).second) {
      return parameter.name + ": shares its offset";
    }
  }
  uint64_t end = 0;
  for (const auto& [offset, parameter] : by_offset) {
    if (offset < end) return parameter->name + ": overlaps the one before it";
    if (offset - end >= kParameterAlignment) return parameter->name + ": a hole before it";
    end = offset + parameter->bytes();
  }
  if (layout.bytes < end) return "the region ends before its parameters";
  if (layout.bytes % kParameterAlignment != 0) return "the region's size is not aligned";
  if (layout.bytes - end >= kParameterAlignment) return "the region is larger than it must be";
  return {};
}

/// Writes the identities of a shard's box where the shard says that they lie.
Difference rasterise(const Shard& shard, const RankLayout& layout, const Catalogue& catalogue,
                     std::vector<Identity>& region) {
  const TensorInfo& tensor = catalogue.tensors().at(shard.tensor);
  const Parameter& parameter = layout.parameters.at(shard.parameter);
  const uint64_t size = element_bytes(tensor.dtype);
  if (shard.box.empty()) return parameter.name + ": an empty shard";
  if (shard.box.rows.end > tensor.rows || shard.box.cols.end > tensor.cols) {
    return parameter.name + ": a box beyond " + tensor.name;
  }
  for (uint64_t row = 0; row < shard.box.rows.size(); ++row) {
    for (uint64_t col = 0; col < shard.box.cols.size(); ++col) {
      const uint64_t byte = shard.offset_bytes + (row * shard.row_stride + col) * size;
      if (byte < parameter.offset_bytes ||
          byte + size > parameter.offset_bytes + parameter.bytes()) {
        return fmt::format("{}: byte {} is not in the parameter", parameter.name, byte);
      }
      for (uint64_t i = 0; i < size; ++i) {
        Identity& place = region.at(byte + i);
        if (place != kPadding) return fmt::format("{}: byte {} twice", parameter.name, byte + i);
        place = i > 0 ? kRest
                      : identity_of(shard.tensor, (shard.box.rows.begin + row) * tensor.cols +
                                                      shard.box.cols.begin + col);
      }
    }
  }
  return {};
}

Difference compare_contents(const RankLayout& layout, const RankContents& expected,
                            const Catalogue& catalogue) {
  const std::vector<Identity> want = expected_region(expected, layout);
  std::vector<Identity> region(layout.bytes, kPadding);
  for (const Shard& shard : layout.shards) {
    if (Difference wrong = rasterise(shard, layout, catalogue, region); !wrong.empty()) {
      return wrong;
    }
  }
  const auto [got, should] = std::mismatch(region.begin(), region.end(), want.begin());
  if (got == region.end()) return {};
  return fmt::format("byte {} holds {} instead of {}", got - region.begin(),
                     describe_identity(catalogue, *got), describe_identity(catalogue, *should));
}

/// gaps() must be the maximal runs of bytes that hold no canonical element.
Difference compare_gaps(const RankLayout& layout, const RankContents& expected,
                        const Catalogue& catalogue) {
  std::vector<bool> uncovered;
  for (const Identity id : expected_region(expected, layout)) uncovered.push_back(id == kPadding);
  std::vector<bool> gaps(uncovered.size(), false);
  uint64_t end = 0;
  for (const Gap& gap : layout.gaps(catalogue)) {
    if (gap.bytes == 0) return "an empty gap";
    if (gap.offset_bytes < end) return "gaps out of order";
    end = gap.offset_bytes + gap.bytes;
    if (end > gaps.size()) return "a gap beyond the region";
    std::fill(gaps.begin() + static_cast<ptrdiff_t>(gap.offset_bytes),
              gaps.begin() + static_cast<ptrdiff_t>(end), true);
  }
  const auto [got, want] = std::mismatch(gaps.begin(), gaps.end(), uncovered.begin());
  if (got == gaps.end()) return {};
  return fmt::format("byte {} is {} gap", got - gaps.begin(),
                     *got ? "wrongly a" : "missing from a");
}

/// Over all ranks, the shards of one tensor with one replica number hold each element once, and the
/// replica numbers of a tensor are 0, 1, 2, ...
Difference check_replicas(const std::vector<RankLayout>& ranks, const Catalogue& catalogue) {
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint32_t>> held;
  for (const RankLayout& rank : ranks) {
    for (const Shard& shard : rank.shards) {
      const TensorInfo& tensor = catalogue.tensors().at(shard.tensor);
      auto& times = held[{shard.tensor, shard.replica}];
      times.resize(tensor.elements(), 0);
      for (uint64_t row = shard.box.rows.begin; row < shard.box.rows.end; ++row) {
        for (uint64_t col = shard.box.cols.begin; col < shard.box.cols.end; ++col) {
          ++times.at(row * tensor.cols + col);
        }
      }
    }
  }
  std::set<uint32_t> tensors;
  uint32_t next = 0;
  for (const auto& [key, times] : held) {
    if (tensors.insert(key.first).second) next = 0;
    if (key.second != next++)
      return fmt::format("tensor {} has no replica {}", key.first, next - 1);
    const auto wrong = std::find_if(times.begin(), times.end(), [](auto n) { return n != 1; });
    if (wrong == times.end()) continue;
    const auto index = static_cast<uint64_t>(wrong - times.begin());
    return fmt::format("replica {} holds {} {} times", key.second,
                       describe_identity(catalogue, identity_of(key.first, index)), *wrong);
  }
  return tensors.size() == catalogue.tensors().size() ? "" : "a tensor that no rank holds";
}

/// What a layout says that it is makes the same layout again.
void check_description(const Layout& layout, const Catalogue& model, bool trainer) {
  const std::string description = layout.describe();
  CAPTURE(description);
  const Catalogue catalogue = held_by(description, model, trainer);
  const auto again = make_layout(description, catalogue, layout.ranks(), trainer);
  CHECK(again->describe() == description);
  const auto same = [](const Parameter& a, const Parameter& b) {
    return a.name == b.name && a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols;
  };
  for (const uint32_t rank : {0U, layout.ranks() - 1}) {
    const auto one = layout.rank_layout(rank).parameters;
    const auto two = again->rank_layout(rank).parameters;
    CHECK(std::equal(one.begin(), one.end(), two.begin(), two.end(), same));
  }
}

/// All checks of all ranks of one engine.
void check_engine(const EngineCase& engine, const Catalogue& model, uint32_t ranks, bool trainer) {
  const Catalogue catalogue = held_by(engine.spec(), model, trainer);
  const auto layout = make_layout(engine.spec(), catalogue, ranks, trainer);
  REQUIRE(layout->ranks() == ranks);
  check_description(*layout, model, trainer);
  std::vector<RankLayout> all;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    CAPTURE(rank);
    const RankContents expected = expected_contents(engine, catalogue, rank, ranks);
    const RankLayout& mine = all.emplace_back(layout->rank_layout(rank));
    const Difference names = compare_parameters(mine, expected, catalogue, engine);
    const Difference offsets = check_offsets(mine);
    REQUIRE_MESSAGE(names.empty(), names);
    REQUIRE_MESSAGE(offsets.empty(), offsets);
    const Difference contents = compare_contents(mine, expected, catalogue);
    CHECK_MESSAGE(contents.empty(), contents);
    const Difference gaps = compare_gaps(mine, expected, catalogue);
    CHECK_MESSAGE(gaps.empty(), gaps);
  }
  const Difference replicas = check_replicas(all, catalogue);
  CHECK_MESSAGE(replicas.empty(), replicas);
}

/// Whether the text has an option of the engine, or a field of the config that it cannot serve, so
/// that a reader knows what to change.
bool names_an_option(const std::string& text, const EngineCase& engine) {
  return text.find("tp") != std::string::npos ||
         text.find("mlp_only_layers") != std::string::npos ||
         text.find("attention_out_bias") != std::string::npos ||
         text.find("has no class for models of type") != std::string::npos ||
         std::any_of(engine.options.begin(), engine.options.end(), [&](const auto& option) {
           return text.find(option.first) != std::string::npos;
         });
}

/// Where the oracle can chop the model the product must, and where it cannot the product must say
/// so.
bool check_or_refused(const EngineCase& engine, const Catalogue& catalogue, uint32_t ranks,
                      bool trainer) {
  CAPTURE(engine.spec());
  CAPTURE(ranks);
  if (divides(engine, catalogue, ranks)) {
    check_engine(engine, catalogue, ranks, trainer);
    return true;
  }
  try {
    const Catalogue held = held_by(engine.spec(), catalogue, trainer);
    (void)make_layout(engine.spec(), held, ranks, trainer);
    FAIL_CHECK("a layout that does not divide was accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK_MESSAGE(names_an_option(std::string(error.what()) + error.hint(), engine), error.what());
  }
  return false;
}

std::string model_text(const ModelConfig& config) {
  return fmt::format(
      "arch {} dtype {} layers {} hidden {} heads {}/{} x {} latent {}/{} intermediate {} vocab {} "
      "tied {} experts {} x {} shared {} step {} first dense {}",
      config.family, dtype_name(config.dtype), config.layers, config.hidden, config.heads,
      config.kv_heads, config.head_dim, config.q_lora_rank, config.kv_lora_rank,
      config.intermediate, config.vocab, config.tied_embeddings, config.experts,
      config.moe_intermediate, config.shared_experts, config.decoder_sparse_step,
      config.first_k_dense_replace);
}

/// A model that every tp of the named test divides; `kv_heads` decides about replication.
ModelConfig divisible_model(const std::string& family, uint64_t kv_heads) {
  ModelConfig config;
  config.family = family;
  config.layers = 3;
  config.hidden = 5;
  config.kv_heads = kv_heads;
  config.heads = 24;
  config.head_dim = 6;
  config.intermediate = 48;
  config.vocab = 321;
  config.attention_bias = family == "qwen2";
  config.qk_norm = family == "qwen3" || family == "qwen3_moe";
  if (family == "qwen3_moe") {
    config.experts = 3;
    config.experts_per_token = 2;
    config.moe_intermediate = 24;
    config.decoder_sparse_step = 2;
    config.mlp_only_layers = {0};
  }
  return config;
}

}  // namespace

TEST_CASE("the catalogue has the tensors and shapes of Hugging Face") {
  Dice dice(1);
  for (int round = 0; round < 100; ++round) {
    const ModelConfig config = random_model(dice);
    CAPTURE(model_text(config));
    const Catalogue catalogue = make_catalogue("random", config);
    std::map<std::string, std::pair<uint64_t, uint64_t>> got;
    for (const TensorInfo& tensor : catalogue.tensors()) {
      CHECK(got.emplace(tensor.name, std::pair{tensor.rows, tensor.cols}).second);
      CHECK(tensor.dtype == expected_dtype(config, tensor.name));
    }
    CHECK(got == expected_tensors(config));
  }
}

TEST_CASE("every engine, tp and architecture holds what its engine's sources say") {
  size_t checked = 0;
  for (const char* family : {"llama", "qwen2", "qwen3", "qwen3_moe"}) {
    for (const bool tied : {false, true}) {
      for (const uint64_t kv_heads : {1, 2, 3, 4, 8, 24}) {
        ModelConfig config = divisible_model(family, kv_heads);
        config.tied_embeddings = tied;
        CAPTURE(model_text(config));
        const Catalogue catalogue = make_catalogue("divisible", config);
        check_engine({"hf"}, catalogue, 2, true);
        check_engine({"hf"}, catalogue, 2, false);
        for (const uint64_t tp : {1, 2, 3, 4, 6, 8}) {
          CAPTURE(tp);
          const auto ranks = static_cast<uint32_t>(tp * (tp < 4 ? 2 : 1));
          checked += check_or_refused({"megatron", tp}, catalogue, ranks, true);
          checked += check_or_refused({"sglang", tp}, catalogue, ranks, false);
        }
      }
    }
  }
  MESSAGE(checked << " layouts checked");
  CHECK(checked > 300);
}

TEST_CASE("random models, engines and worlds") {
  Dice dice(2);
  std::map<std::string, size_t> checked;
  for (int round = 0; round < random_cases(10'000); ++round) {
    const ModelConfig config = random_model(dice);
    CAPTURE(round);
    CAPTURE(model_text(config));
    const Catalogue catalogue = make_catalogue("random", config);
    const bool trainer = dice.one_in(2);
    const EngineCase engine =
        trainer ? any_trainer(dice, catalogue) : any_inference(dice, catalogue);
    const auto ranks = static_cast<uint32_t>(
        dice.one_in(4) ? dice.between(1, 24) : dice.one_of({2, 4, 6, 8, 12, 16, 24}));
    if (!check_or_refused(engine, catalogue, ranks, trainer)) continue;
    ++checked[engine.engine];
    for (const auto& [key, value] : engine.options) {
      if (value != "1") ++checked[engine.engine + " " + key];
    }
  }
  for (const std::string seen : {"megatron",
                                 "fsdp",
                                 "sglang",
                                 "vllm",
                                 "megatron pp",
                                 "megatron vpp",
                                 "megatron first",
                                 "megatron last",
                                 "megatron layout",
                                 "megatron account_for_embedding",
                                 "megatron account_for_loss",
                                 "megatron cp",
                                 "megatron ep",
                                 "megatron etp",
                                 "megatron experts",
                                 "megatron spec",
                                 "megatron pad_vocab",
                                 "megatron pad_with_tp",
                                 "fsdp shard",
                                 "fsdp replicate",
                                 "sglang pp",
                                 "sglang ep",
                                 "sglang attn_dp",
                                 "sglang embed",
                                 "sglang dp_lm_head",
                                 "sglang fuse_shared",
                                 "sglang dense_mlp",
                                 "sglang shared_experts",
                                 "sglang dtype",
                                 "sglang router_dtype",
                                 "sglang block",
                                 "vllm pp",
                                 "vllm ep",
                                 "vllm dp",
                                 "vllm shared_experts",
                                 "vllm stored_head",
                                 "vllm dtype",
                                 "vllm router_dtype",
                                 "vllm block",
                                 "hf dtype",
                                 "hf block"}) {
    MESSAGE(checked[seen] << " layouts with " << seen);
    // What is rare may not come in a share of the cases.
    if (kShareOfCases == 1) CHECK(checked[seen] >= size_t{5});
  }
}

TEST_CASE("QKV rows of a published model at more ranks than KV heads") {
  // Qwen3-30B-A3B at tp 8: even ranks hold five query heads, odd ranks three, then key and value.
  ModelConfig config = divisible_model("qwen3", 4);
  config.heads = 32;
  config.layers = 1;
  const Catalogue catalogue = make_catalogue("heads of 30B", config);
  const auto layout = make_trainer_layout("megatron:tp=8", catalogue, 8);
  const uint32_t q = catalogue.index_of("model.layers.0.self_attn.q_proj.weight");
  const uint32_t k = catalogue.index_of("model.layers.0.self_attn.k_proj.weight");
  for (uint32_t rank = 0; rank < 8; ++rank) {
    CAPTURE(rank);
    uint64_t q_heads = 0;
    uint64_t k_heads = 0;
    for (const Shard& shard : layout->rank_layout(rank).shards) {
      if (shard.tensor == q) q_heads += shard.box.rows.size() / config.head_dim;
      if (shard.tensor == k) k_heads += shard.box.rows.size() / config.head_dim;
    }
    CHECK(q_heads == (rank % 2 == 0 ? 5 : 3));
    CHECK(k_heads == rank % 2);
  }
}

TEST_CASE("published vocabularies are padded as the engines pad them") {
  struct Padded {
    uint64_t vocab, tp, megatron, sglang;
  };
  for (const Padded& want : {Padded{151936, 1, 151936, 151936}, Padded{151936, 2, 152064, 151936},
                             Padded{151936, 4, 152064, 151936}, Padded{151936, 8, 152576, 151936},
                             Padded{128256, 4, 128512, 128256}, Padded{128256, 8, 129024, 128256},
                             Padded{129280, 8, 130048, 129280}}) {
    CAPTURE(want.vocab);
    CAPTURE(want.tp);
    ModelConfig config = divisible_model("llama", 8);
    config.vocab = want.vocab;
    const Catalogue catalogue = make_catalogue("published", config);
    const auto ranks = static_cast<uint32_t>(want.tp);
    const auto rows_of = [](const RankLayout& layout, const std::string& name) {
      const auto found = std::find_if(layout.parameters.begin(), layout.parameters.end(),
                                      [&](const Parameter& p) { return p.name == name; });
      REQUIRE(found != layout.parameters.end());
      return found->rows;
    };
    const auto megatron =
        make_trainer_layout(fmt::format("megatron:tp={}", ranks), catalogue, ranks);
    CHECK(rows_of(megatron->rank_layout(0), "embedding.word_embeddings.weight") * want.tp ==
          want.megatron);
    const auto sglang = make_inference_layout(fmt::format("sglang:tp={}", ranks), catalogue, ranks);
    CHECK(rows_of(sglang->rank_layout(0), "model.embed_tokens.weight") * want.tp == want.sglang);
  }
}

}  // namespace awex::test
