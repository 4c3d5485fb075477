#include "layout/fused.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "layout/builder.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/layer_tensors.hpp"

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

/// A rank's share of a tensor: part `part.index`, which `replicas.count` ranks of an instance hold.
struct Share {
  Part part;
  Part replicas;
  Splitter by{"tp"};
};

/// Adds the parameters of one rank. `rank` counts the ranks of a stage, dp-major.
class RankWriter {
 public:
  RankWriter(const Catalogue& catalogue, const ModelTensors& tensors, const FusedEngine& engine,
             uint32_t rank, uint32_t stage, uint32_t instance)
      : config_(catalogue.config()),
        tensors_(tensors),
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
  [[nodiscard]] bool has_tied_replica() const {
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
      mine.replicas.index += stage_ * mine.replicas.count;
      mine.replicas.count *= narrow<uint32_t>(engine_.stages.size());
    }
    return mine;
  }

  [[nodiscard]] Share share_of_head() const {
    return share_of_end(engine_.head, has_head_everywhere());
  }

  void add_last_norm() {
    builder_.replicated("model.norm.weight", tensors_.final_norm,
                        share_of_end({}, engine_.ends_everywhere).replicas);
  }

  void add_embedding() {
    Share mine = share_of_end(engine_.embedding, engine_.ends_everywhere);
    if (has_tied_replica()) mine.replicas.count += share_of_head().replicas.count;
    add_vocabulary("model.embed_tokens.weight", tensors_.embedding, mine);
  }

  void add_head() {
    Share mine = share_of_head();
    if (has_tied_replica()) {
      const uint32_t before = stage_ranks() / engine_.embedding.count;
      mine.replicas = {mine.replicas.count + before, mine.replicas.index + before};
      add_vocabulary(engine_.tied_head, tensors_.embedding, mine);
    } else if (tensors_.head) {
      add_vocabulary("lm_head.weight", *tensors_.head, mine);
    }
  }

  void add_vocabulary(const char* name, uint32_t tensor, Share mine) {
    builder_.begin(name);
    const Range wanted = mine.part.of(padded_vocab(config_, engine_, mine.part.count));
    const Range held = intersect(wanted, {0, config_.vocab});
    builder_.add(tensor, {held, {0, config_.hidden}}, mine.replicas);
    builder_.pad_rows(wanted.size() - held.size());
  }

  void add_layer(uint64_t index) {
    const LayerTensors& layer = tensors_.layers[index];
    const auto prefix = fmt::format("model.layers.{}.", index);
    add_whole(layer.input_norm);
    if (layer.latent) {
      add_latent_attention(prefix + "self_attn.", *layer.latent);
    } else {
      add_attention(prefix + "self_attn.", layer);
    }
    add_columns(layer.o);
    if (layer.o_bias) add_whole(*layer.o_bias);
    add_whole(layer.post_attention_norm);
    if (layer.moe) {
      add_moe(prefix + engine_.moe_module, *layer.moe);
    } else {
      add_mlp(prefix + "mlp.", *layer.mlp, share(engine_.dense_mlp));
    }
  }

  void add_attention(const std::string& prefix, const LayerTensors& layer) {
    add_fused_qkv(prefix + "qkv_proj.weight", *layer.qkv);
    if (layer.qkv_bias) add_fused_qkv(prefix + "qkv_proj.bias", *layer.qkv_bias);
    if (layer.q_norm) add_whole(*layer.q_norm);
    if (layer.k_norm) add_whole(*layer.k_norm);
  }

  /// layers/linear.py, QKVParallelLinear: this rank's query heads, then its key and value heads;
  /// with more ranks than KV heads, neighbours share one.
  void add_fused_qkv(std::string name, const QkvTensors& qkv) {
    const Share queries = share(engine_.attention);
    const uint32_t kv_heads = narrow<uint32_t>(config_.kv_heads);
    const uint32_t sharers =
        engine_.attention.count > kv_heads ? engine_.attention.count / kv_heads : 1;
    const Share heads{{queries.part.count / sharers, queries.part.index / sharers},
                      {queries.replicas.count * sharers,
                       queries.replicas.index * sharers + queries.part.index % sharers},
                      queries.by};
    builder_.begin(std::move(name));
    add_row_block(qkv.q, queries);
    add_row_block(qkv.k, heads);
    add_row_block(qkv.v, heads);
  }

  /// Multi-head latent attention: the down projections are whole on every rank, the up projections
  /// are split by heads.
  void add_latent_attention(const std::string& prefix, const LatentTensors& latent) {
    if (latent.q_down) {
      builder_.begin(prefix + engine_.fused_qkv_a + ".weight");
      add_row_block(*latent.q_down, share({}));
      add_row_block(latent.kv_down, share({}));
      add_whole(*latent.q_norm);
      add_rows(latent.q_up);
    } else {
      add_rows(latent.q_up);
      add_whole(latent.kv_down);
    }
    add_whole(latent.kv_norm);
    add_rows(latent.kv_up);
  }

  void add_mlp(const std::string& prefix, const MlpTensors& mlp, Share mine) {
    builder_.begin(prefix + "gate_up_proj.weight");
    add_row_block(mlp.gate, mine);
    add_row_block(mlp.up, mine);
    builder_.begin(prefix + "down_proj.weight");
    add_column_block(mlp.down, mine);
  }

  [[nodiscard]] bool fuses_shared_experts(const MoeTensors& moe) const {
    return engine_.fuse_shared_experts && moe.shared;
  }

  void add_moe(const std::string& prefix, const MoeTensors& moe) {
    add_whole(moe.router);
    if (moe.router_bias) add_whole(*moe.router_bias);
    add_experts(prefix + engine_.experts_module, moe);
    if (moe.shared && !fuses_shared_experts(moe)) {
      add_mlp(prefix + engine_.shared_module, *moe.shared, share(engine_.shared_experts));
    }
    if (moe.shared_gate) add_whole(*moe.shared_gate);
  }

  /// layers/fused_moe/layer.py and layers/moe/fused_moe_triton/layer.py: w13 [experts, 2M/ways, H]
  /// with rows [gate; up] an expert, w2 [experts, H, M/ways].
  void add_experts(const std::string& prefix, const MoeTensors& moe) {
    const uint32_t groups = stage_ranks() / engine_.experts.count;
    const Range mine = experts_of(moe.experts, groups, rank_ / engine_.experts.count);
    const Share inside{share(engine_.experts).part, {}, engine_.experts.by};
    builder_.begin(prefix + "w13_weight");
    for (uint64_t e = mine.begin; e < mine.end; ++e) {
      add_gate_and_up(moe.expert(static_cast<uint32_t>(e)), inside);
    }
    if (fuses_shared_experts(moe)) add_gate_and_up(*moe.shared, share(engine_.experts));
    builder_.begin(prefix + "w2_weight");
    for (uint64_t e = mine.begin; e < mine.end; ++e) {
      builder_.begin_matrix();
      add_column_block(moe.expert(static_cast<uint32_t>(e)).down, inside);
    }
    if (fuses_shared_experts(moe)) {
      builder_.begin_matrix();
      add_column_block(moe.shared->down, share(engine_.experts));
    }
  }

  void add_gate_and_up(const MlpTensors& expert, Share mine) {
    builder_.begin_matrix();
    add_row_block(expert.gate, mine);
    add_row_block(expert.up, mine);
  }

  void add_row_block(uint32_t tensor, Share mine) {
    const TensorInfo& info = builder_.info(tensor);
    builder_.add(tensor, {mine.part.of(info.rows), {0, info.cols}}, mine.replicas, mine.by);
  }
  void add_column_block(uint32_t tensor, Share mine) {
    const TensorInfo& info = builder_.info(tensor);
    builder_.add(tensor, {{0, info.rows}, mine.part.of(info.cols)}, mine.replicas, mine.by);
  }

  /// Parameters that the engine names as the checkpoint does: whole, or split by attention heads.
  void add_whole(uint32_t tensor) {
    builder_.replicated(builder_.info(tensor).name, tensor, share({}).replicas);
  }
  void add_rows(uint32_t tensor) {
    builder_.begin(builder_.info(tensor).name);
    add_row_block(tensor, share(engine_.attention));
  }
  void add_columns(uint32_t tensor) {
    builder_.begin(builder_.info(tensor).name);
    add_column_block(tensor, share(engine_.attention));
  }

  const ModelConfig& config_;
  const ModelTensors& tensors_;
  const FusedEngine& engine_;
  uint32_t rank_;
  uint32_t stage_;
  RankLayoutBuilder builder_;
};

class FusedLayout final : public Layout {
 public:
  FusedLayout(const Catalogue& catalogue, ModelTensors tensors, FusedEngine engine, uint32_t ranks)
      : catalogue_(catalogue),
        tensors_(std::move(tensors)),
        engine_(std::move(engine)),
        ranks_(ranks) {}

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
    return RankWriter(catalogue_, tensors_, engine_, tp + engine_.tp * dp, stage, instance).write();
  }

  /// Throws a request error when a rank's part of a tensor cuts blocks that share a scale. Parts of
  /// a tensor have one size: what cuts none on a stage's first rank cuts none at all.
  void check_blocks() const {
    for (uint32_t stage = 0; stage < stages(); ++stage) (void)rank_layout(stage * engine_.tp);
  }

 private:
  [[nodiscard]] uint32_t stages() const { return narrow<uint32_t>(engine_.stages.size()); }

  const Catalogue& catalogue_;
  ModelTensors tensors_;
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

/// Checks what the ranks must divide in one layer.
class LayerCheck {
 public:
  LayerCheck(const Catalogue& catalogue, const FusedEngine& engine)
      : catalogue_(catalogue), engine_(engine) {}

  void check(const LayerTensors& layer) const {
    if (layer.moe) {
      check_experts(*layer.moe);
      if (layer.moe->shared) check_shared_experts(*layer.moe->shared);
    } else {
      check_rows("intermediate_size", layer.mlp->gate, engine_.dense_mlp);
    }
  }

 private:
  void check_rows(const char* what, uint32_t tensor, const Ways& ways) const {
    check_divides(what, catalogue_.tensors()[tensor].rows, ways.by.option, ways.count);
  }

  void check_experts(const MoeTensors& moe) const {
    check_rows("moe_intermediate_size", moe.first_expert.gate, engine_.experts);
    const uint32_t groups = engine_.tp * engine_.dp / engine_.experts.count;
    if (groups <= moe.experts) return;
    throw request_error(
        fmt::format("{} experts are too few for {} expert parallel ranks", moe.experts, groups),
        "every rank must hold an expert: use a smaller ep, tp or dp");
  }

  /// Fused, they stand for one more expert: there must be one, which no gate weighs.
  void check_shared_experts(const MlpTensors& shared) const {
    const ModelConfig& config = catalogue_.config();
    if (!engine_.fuse_shared_experts) {
      check_rows("width of the shared experts", shared.gate, engine_.shared_experts);
    } else if (config.shared_experts > 1) {
      throw request_error(
          fmt::format("fuse_shared=on: the engine fuses one shared expert, this model has {}",
                      config.shared_experts),
          "leave fuse_shared off");
    } else if (config.has_shared_expert_gate) {
      throw request_error(
          "fuse_shared=on: the engine keeps a shared expert apart that a gate weighs",
          "leave fuse_shared off");
    }
  }

  const Catalogue& catalogue_;
  const FusedEngine& engine_;
};

void check_model(const Catalogue& catalogue, const ModelTensors& tensors,
                 const FusedEngine& engine) {
  check_attention(catalogue.config(), engine.attention);
  check_vocabulary(catalogue.config(), engine, engine.embedding);
  check_vocabulary(catalogue.config(), engine, engine.head);
  const LayerCheck check(catalogue, engine);
  for (const auto& layer : tensors.layers) check.check(layer);
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
      fmt::format("choose sizes whose product divides {}, {}", ranks, kMoreRanks));
}

std::unique_ptr<Layout> make_fused_layout(const Catalogue& catalogue, FusedEngine engine,
                                          uint32_t ranks) {
  auto tensors = find_tensors(catalogue);
  check_model(catalogue, tensors, engine);
  auto layout =
      std::make_unique<FusedLayout>(catalogue, std::move(tensors), std::move(engine), ranks);
  if (model_tensors(catalogue) < catalogue.tensors().size()) layout->check_blocks();
  return layout;
}

}  // namespace awex
