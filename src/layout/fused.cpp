#include "layout/fused.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/checked.hpp"
#include "layout/builder.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

/// layers/vocab_parallel_embedding.py of both engines: a multiple of 64 in all, padding at the
/// global end. SGLang pads to 64 rows a part where that does not divide.
uint64_t padded_vocab(const ModelConfig& config, const FusedEngine& engine, uint32_t parts) {
  const uint64_t padded = round_up(config.vocab, 64);
  if (padded % parts == 0 || !engine.pads_vocabulary_by_parts) return padded;
  return round_up(config.vocab, uint64_t{64} * parts);
}

/// fused_moe/layer.py of vLLM, determine_expert_map: the first groups get one more when the experts
/// do not divide.
Range experts_of(uint64_t experts, uint32_t groups, uint32_t group) {
  const auto begin = [&](uint64_t g) {
    return experts / groups * g + std::min(experts % groups, g);
  };
  return {begin(group), begin(group + 1)};
}

/// A rank's share of a tensor: part `part.index`, which `copies.count` ranks of an instance hold.
struct Share {
  Part part;
  Part copies;
  Splitter by{"tp"};
};

/// Adds the parameters of one rank. `rank` counts the ranks of a stage, dp-major.
class RankWriter {
 public:
  RankWriter(const Catalogue& catalogue, const FusedEngine& engine, uint32_t rank, uint32_t stage,
             uint32_t instance)
      : catalogue_(catalogue),
        config_(catalogue.config()),
        engine_(engine),
        rank_(rank),
        stage_(stage),
        builder_(catalogue, instance) {}

  RankLayout write() && {
    if (stage_ == 0 || engine_.ends_everywhere) add_embedding();
    const Range layers = engine_.stages[stage_];
    for (uint64_t layer = layers.begin; layer < layers.end; ++layer) add_layer(layer);
    const bool is_last = stage_ + 1 == engine_.stages.size();
    if (is_last || engine_.ends_everywhere) add_last_norm();
    if (is_last || has_head_everywhere()) add_head();
    return builder_.finish();
  }

 private:
  [[nodiscard]] uint32_t stage_ranks() const { return engine_.tp * engine_.dp; }

  [[nodiscard]] Share share(const Ways& ways) const {
    return {{ways.count, rank_ % ways.count},
            {stage_ranks() / ways.count, rank_ / ways.count},
            ways.by};
  }

  /// The embedding is there again as the head: on the last of several stages, or wherever the
  /// engine has a head of its own.
  [[nodiscard]] bool has_tied_copy() const {
    if (!config_.tied_embeddings || engine_.ends_everywhere) return false;
    return engine_.own_head || (engine_.stages.size() > 1 && *engine_.tied_head != '\0');
  }

  [[nodiscard]] bool has_head_everywhere() const {
    return engine_.ends_everywhere || engine_.head_everywhere;
  }

  /// The share of a tensor at an end of the model, which other stages may hold as well.
  [[nodiscard]] Share share_of_end(const Ways& ways, bool is_everywhere) const {
    Share mine = share(ways);
    if (is_everywhere) {
      mine.copies.index += stage_ * mine.copies.count;
      mine.copies.count *= narrow<uint32_t>(engine_.stages.size());
    }
    return mine;
  }

  [[nodiscard]] Share share_of_head() const {
    return share_of_end(engine_.head, has_head_everywhere());
  }

  void add_last_norm() {
    builder_.replicated("model.norm.weight", index("model.norm.weight"),
                        share_of_end({}, engine_.ends_everywhere).copies);
  }

  void add_embedding() {
    Share mine = share_of_end(engine_.embedding, engine_.ends_everywhere);
    if (has_tied_copy()) mine.copies.count += share_of_head().copies.count;
    add_vocabulary("model.embed_tokens.weight", "model.embed_tokens.weight", mine);
  }

  void add_head() {
    Share mine = share_of_head();
    if (has_tied_copy()) {
      const uint32_t before = stage_ranks() / engine_.embedding.count;
      mine.copies = {mine.copies.count + before, mine.copies.index + before};
      add_vocabulary(engine_.tied_head, "model.embed_tokens.weight", mine);
    } else if (!config_.tied_embeddings) {
      add_vocabulary("lm_head.weight", "lm_head.weight", mine);
    }
  }

  void add_vocabulary(const char* name, const char* tensor, Share mine) {
    builder_.begin(name);
    const Range wanted = mine.part.of(padded_vocab(config_, engine_, mine.part.count));
    const Range held = intersect(wanted, {0, config_.vocab});
    builder_.add(tensor, {held, {0, config_.hidden}}, mine.copies);
    builder_.pad_rows(wanted.size() - held.size());
  }

  void add_layer(uint64_t layer) {
    const auto prefix = fmt::format("model.layers.{}.", layer);
    add_whole(prefix + "input_layernorm.weight");
    if (config_.is_mla()) {
      add_latent_attention(prefix + "self_attn.");
    } else {
      add_attention(prefix + "self_attn.");
    }
    add_whole(prefix + "post_attention_layernorm.weight");
    if (config_.is_moe_layer(layer)) {
      add_moe(prefix + "mlp.");
    } else {
      add_mlp(prefix + "mlp.", share(engine_.dense_mlp));
    }
  }

  void add_attention(const std::string& prefix) {
    add_fused_qkv(prefix, ".weight");
    if (config_.attention_bias) add_fused_qkv(prefix, ".bias");
    if (config_.qk_norm) {
      add_whole(prefix + "q_norm.weight");
      add_whole(prefix + "k_norm.weight");
    }
    add_columns(prefix + "o_proj.weight");
  }

  /// layers/linear.py, QKVParallelLinear: this rank's query heads, then its key and value heads;
  /// with more ranks than KV heads, neighbours share one.
  void add_fused_qkv(const std::string& prefix, const std::string& suffix) {
    const Share queries = share(engine_.attention);
    const uint32_t kv_heads = narrow<uint32_t>(config_.kv_heads);
    const uint32_t sharers =
        engine_.attention.count > kv_heads ? engine_.attention.count / kv_heads : 1;
    const Share heads{{queries.part.count / sharers, queries.part.index / sharers},
                      {queries.copies.count * sharers,
                       queries.copies.index * sharers + queries.part.index % sharers},
                      queries.by};
    builder_.begin(prefix + "qkv_proj" + suffix);
    add_row_block(index(prefix + "q_proj" + suffix), queries);
    add_row_block(index(prefix + "k_proj" + suffix), heads);
    add_row_block(index(prefix + "v_proj" + suffix), heads);
  }

  /// Multi-head latent attention: the down projections are whole on every rank, the up projections
  /// are split by heads.
  void add_latent_attention(const std::string& prefix) {
    if (config_.q_lora_rank > 0) {
      builder_.begin(prefix + engine_.fused_qkv_a + ".weight");
      add_row_block(index(prefix + "q_a_proj.weight"), share({}));
      add_row_block(index(prefix + "kv_a_proj_with_mqa.weight"), share({}));
      add_whole(prefix + "q_a_layernorm.weight");
      add_rows(prefix + "q_b_proj.weight");
    } else {
      add_rows(prefix + "q_proj.weight");
      add_whole(prefix + "kv_a_proj_with_mqa.weight");
    }
    add_whole(prefix + "kv_a_layernorm.weight");
    add_rows(prefix + "kv_b_proj.weight");
    add_columns(prefix + "o_proj.weight");
  }

  void add_mlp(const std::string& prefix, Share mine) {
    builder_.begin(prefix + "gate_up_proj.weight");
    add_row_block(index(prefix + "gate_proj.weight"), mine);
    add_row_block(index(prefix + "up_proj.weight"), mine);
    builder_.begin(prefix + "down_proj.weight");
    add_column_block(index(prefix + "down_proj.weight"), mine);
  }

  [[nodiscard]] bool fuses_shared_experts() const {
    return engine_.fuse_shared_experts && config_.shared_experts > 0;
  }

  void add_moe(const std::string& prefix) {
    add_whole(prefix + "gate.weight");
    if (config_.has_score_correction_bias) {
      add_whole(prefix + "gate.e_score_correction_bias");
    }
    add_experts(prefix);
    if (config_.shared_experts > 0 && !fuses_shared_experts()) {
      add_mlp(prefix + "shared_experts.", share(engine_.shared_experts));
    }
  }

  /// layers/fused_moe/layer.py and layers/moe/fused_moe_triton/layer.py: w13 [experts, 2M/ways, H]
  /// with rows [gate; up] an expert, w2 [experts, H, M/ways].
  void add_experts(const std::string& prefix) {
    const uint32_t groups = stage_ranks() / engine_.experts.count;
    const Range mine = experts_of(config_.experts, groups, rank_ / engine_.experts.count);
    const Share expert{share(engine_.experts).part, {}, engine_.experts.by};
    const uint32_t gate = first_expert(prefix, mine);
    const uint32_t up = gate + 1;
    const uint32_t down = gate + 2;
    builder_.begin(prefix + engine_.experts_module + "w13_weight");
    for (uint32_t e = 0; e < mine.size(); ++e) {
      builder_.begin_matrix();
      add_row_block(gate + 3 * e, expert);
      add_row_block(up + 3 * e, expert);
    }
    if (fuses_shared_experts()) {
      builder_.begin_matrix();
      add_row_block(index(prefix + "shared_experts.gate_proj.weight"), share(engine_.experts));
      add_row_block(index(prefix + "shared_experts.up_proj.weight"), share(engine_.experts));
    }
    builder_.begin(prefix + engine_.experts_module + "w2_weight");
    for (uint32_t e = 0; e < mine.size(); ++e) {
      builder_.begin_matrix();
      add_column_block(down + 3 * e, expert);
    }
    if (fuses_shared_experts()) {
      builder_.begin_matrix();
      add_column_block(index(prefix + "shared_experts.down_proj.weight"), share(engine_.experts));
    }
  }

  /// The index of the first of `experts`' gate projection. The catalogue lists gate, up and down
  /// one after the other, expert by expert: one search a layer instead of one a tensor, of which a
  /// large model has tens of thousands.
  [[nodiscard]] uint32_t first_expert(const std::string& prefix, Range experts) const {
    const auto find = [&](uint64_t expert, const char* projection) {
      return index(fmt::format("{}experts.{}.{}.weight", prefix, expert, projection));
    };
    const uint32_t first = find(experts.begin, "gate_proj");
    if (find(experts.end - 1, "down_proj") == first + 3 * experts.size() - 1) return first;
    throw runtime_error(fmt::format("{}experts of model {} are not listed one after the other",
                                    prefix, catalogue_.model_name()));
  }

  [[nodiscard]] uint32_t index(std::string_view tensor) const {
    return catalogue_.index_of(tensor);
  }

  void add_row_block(uint32_t tensor, Share mine) {
    const TensorInfo& info = catalogue_.tensors()[tensor];
    builder_.add(tensor, {mine.part.of(info.rows), {0, info.cols}}, mine.copies, mine.by);
  }
  void add_column_block(uint32_t tensor, Share mine) {
    const TensorInfo& info = catalogue_.tensors()[tensor];
    builder_.add(tensor, {{0, info.rows}, mine.part.of(info.cols)}, mine.copies, mine.by);
  }

  /// Parameters that the engine names as the checkpoint does: whole, or split by attention heads.
  void add_whole(const std::string& tensor) {
    builder_.replicated(tensor, index(tensor), share({}).copies);
  }
  void add_rows(const std::string& tensor) {
    builder_.begin(tensor);
    add_row_block(index(tensor), share(engine_.attention));
  }
  void add_columns(const std::string& tensor) {
    builder_.begin(tensor);
    add_column_block(index(tensor), share(engine_.attention));
  }

  const Catalogue& catalogue_;
  const ModelConfig& config_;
  const FusedEngine& engine_;
  uint32_t rank_;
  uint32_t stage_;
  RankLayoutBuilder builder_;
};

class FusedLayout final : public Layout {
 public:
  FusedLayout(const Catalogue& catalogue, FusedEngine engine, uint32_t ranks)
      : catalogue_(catalogue), engine_(std::move(engine)), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return engine_.spec; }
  [[nodiscard]] std::vector<std::string> notes() const override { return engine_.notes; }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override {
    return rank % (engine_.tp * stages() * engine_.dp);
  }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    const uint32_t tp = rank % engine_.tp;
    const uint32_t stage = rank / engine_.tp % stages();
    const uint32_t dp = rank / engine_.tp / stages() % engine_.dp;
    const uint32_t instance = rank / engine_.tp / stages() / engine_.dp;
    return RankWriter(catalogue_, engine_, tp + engine_.tp * dp, stage, instance).write();
  }

  /// Throws a request error when a rank's part of a tensor cuts blocks that share a scale. Parts of
  /// a tensor have one size: what cuts none on a stage's first rank cuts none at all.
  void check_blocks() const {
    for (uint32_t stage = 0; stage < stages(); ++stage) (void)rank_layout(stage * engine_.tp);
  }

 private:
  [[nodiscard]] uint32_t stages() const { return narrow<uint32_t>(engine_.stages.size()); }

  const Catalogue& catalogue_;
  FusedEngine engine_;
  uint32_t ranks_;
};

void check_attention(const ModelConfig& config, const Ways& ways) {
  check_divides("num_attention_heads", config.heads, ways.by.option, ways.count);
  if (config.kv_heads % ways.count == 0 || ways.count % config.kv_heads == 0) return;
  throw request_error(
      fmt::format("{}={} neither divides nor is a multiple of num_key_value_heads = {}",
                  ways.by.option, ways.count, config.kv_heads));
}

void check_vocabulary(const ModelConfig& config, const FusedEngine& engine, const Ways& ways) {
  check_divides("padded vocabulary", padded_vocab(config, engine, ways.count), ways.by.option,
                ways.count);
}

void check_experts(const ModelConfig& config, const FusedEngine& engine) {
  check_divides("moe_intermediate_size", config.moe_intermediate, engine.experts.by.option,
                engine.experts.count);
  const uint32_t groups = engine.tp * engine.dp / engine.experts.count;
  if (groups <= config.experts) return;
  throw request_error(
      fmt::format("{} experts are too few for {} expert parallel ranks", config.experts, groups),
      "every rank must hold an expert: use a smaller ep, tp or dp");
}

/// Fused, they stand for one more expert, so there must not be several.
void check_shared_experts(const ModelConfig& config, const FusedEngine& engine) {
  if (!engine.fuse_shared_experts) {
    check_divides("width of the shared experts", config.shared_experts * config.moe_intermediate,
                  engine.shared_experts.by.option, engine.shared_experts.count);
  } else if (config.shared_experts > 1) {
    throw request_error(
        fmt::format("fuse_shared=on: the engine fuses one shared expert, this model has {}",
                    config.shared_experts),
        "leave fuse_shared off");
  }
}

void check_model(const ModelConfig& config, const FusedEngine& engine) {
  check_attention(config, engine.attention);
  check_vocabulary(config, engine, engine.embedding);
  check_vocabulary(config, engine, engine.head);
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) {
      check_experts(config, engine);
      check_shared_experts(config, engine);
    } else {
      check_divides("intermediate_size", config.intermediate, engine.dense_mlp.by.option,
                    engine.dense_mlp.count);
    }
  }
}

}  // namespace

std::vector<Range> split_layers(uint64_t layers, uint32_t pp, Range longer) {
  if (layers < pp) {
    throw request_error(fmt::format("pp={} leaves stages without any of the {} layers", pp, layers),
                        fmt::format("choose a pp of at most {}", layers));
  }
  std::vector<Range> stages;
  uint64_t begin = 0;
  for (uint64_t stage = 0; stage < pp; ++stage) {
    const bool is_longer = longer.begin <= stage && stage < longer.end;
    const uint64_t end = begin + layers / pp + (is_longer ? 1 : 0);
    stages.push_back({begin, end});
    begin = end;
  }
  return stages;
}

void check_instances(uint32_t ranks, uint32_t tp, uint32_t pp, uint32_t dp) {
  const uint64_t instance = uint64_t{tp} * pp * dp;
  if (ranks % instance == 0) return;
  throw request_error(
      fmt::format("{} inference ranks are no multiple of the {} of one instance (tp={}, pp={}, "
                  "dp={})",
                  ranks, instance, tp, pp, dp),
      "the inference ranks must make up whole instances of the engine");
}

std::unique_ptr<Layout> make_fused_layout(const Catalogue& catalogue, FusedEngine engine,
                                          uint32_t ranks) {
  check_model(catalogue.config(), engine);
  auto layout = std::make_unique<FusedLayout>(catalogue, std::move(engine), ranks);
  if (model_tensors(catalogue) < catalogue.tensors().size()) layout->check_blocks();
  return layout;
}

}  // namespace awex
