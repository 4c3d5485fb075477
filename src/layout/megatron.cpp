#include "layout/megatron.hpp"

#include <numeric>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "layout/builder.hpp"
#include "layout/layer_tensors.hpp"
#include "layout/megatron_options.hpp"

namespace awex {
namespace {

/// What a Megatron trainer is made of, shared by all its ranks.
struct Trainer {
  const Catalogue& catalogue;
  MegatronOptions options;
  Pipeline pipeline;
  ModelTensors tensors;
};

/// A rank's places in the groups that split weights, and which replica it holds.
struct Place {
  Part tp;
  Part etp;
  Part ep;
  uint32_t replica = 0;         ///< Over data and context parallel ranks.
  uint32_t expert_replica = 0;  ///< Over expert data parallel ranks.

  /// `rank` is that within the pipeline stage (core/parallel_state.py).
  static Place of(const MegatronOptions& options, uint32_t rank) {
    const uint32_t tp = options.tp;
    const uint32_t etp = options.etp;
    const uint32_t ep = options.ep;
    return {.tp = {tp, rank % tp},
            .etp = {etp, rank % etp},
            .ep = {ep, rank / etp % ep},
            .replica = rank / tp,
            .expert_replica = rank / (etp * ep)};
  }
};

/// Writes what one rank holds.
class RankWriter {
 public:
  RankWriter(const Trainer& trainer, const Place& place)
      : trainer_(trainer), place_(place), builder_(trainer.catalogue, place.replica) {}

  RankLayout all(const std::vector<PipelineChunk>& chunks) && {
    for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
      prefix_ = chunk == 0 ? "" : fmt::format("chunk{}.", chunk);
      add_chunk(chunks[chunk]);
    }
    return builder_.finish();
  }

 private:
  void add_chunk(const PipelineChunk& chunk) {
    // Replicas of a tied embedding: the output layer has one of its own unless it can share.
    const ModelTensors& tensors = trainer_.tensors;
    const bool tied = !tensors.head;
    const bool has_replica = tied && !(chunk.embedding && chunk.head);
    const uint32_t replicas = has_replica ? 2 : 1;
    if (chunk.embedding) {
      add_vocabulary("embedding.word_embeddings.weight", tensors.embedding, {replicas, 0});
    }
    for (uint64_t layer = chunk.layers.begin; layer < chunk.layers.end; ++layer) {
      add_layer(layer - chunk.layers.begin, tensors.layers[layer]);
    }
    if (chunk.final_norm) {
      builder_.replicated(prefix_ + "decoder.final_layernorm.weight", tensors.final_norm,
                          place_.tp);
    }
    if (chunk.head && (has_replica || !tied)) {
      add_vocabulary("output_layer.weight", tensors.head.value_or(tensors.embedding),
                     {replicas, replicas - 1});
    }
  }

  void add_vocabulary(const char* name, uint32_t tensor, Part replicas) {
    builder_.split_padded_rows(prefix_ + name, tensor,
                               trainer_.options.padded_vocab(builder_.info(tensor).rows), place_.tp,
                               replicas);
  }

  void add_layer(uint64_t local, const LayerTensors& layer) {
    const auto mcore = fmt::format("{}decoder.layers.{}.", prefix_, local);
    layer.latent ? add_latent_attention(mcore, layer) : add_attention(mcore, layer);
    builder_.split_cols(mcore + "self_attention.linear_proj.weight", layer.o, place_.tp);
    // Transformer Engine fuses a norm into the linear layer behind it; a router is none.
    const bool fused = layer.mlp && !trainer_.options.local_spec;
    builder_.replicated(
        mcore + (fused ? "mlp.linear_fc1.layer_norm_weight" : "pre_mlp_layernorm.weight"),
        layer.post_attention_norm, place_.tp);
    if (layer.mlp) add_mlp(mcore + "mlp.linear_fc", ".weight", *layer.mlp, place_.tp);
    if (layer.moe) add_moe(mcore + "mlp.", *layer.moe);
  }

  void add_attention(const std::string& mcore, const LayerTensors& layer) {
    const auto attention = mcore + "self_attention.";
    builder_.replicated(trainer_.options.local_spec ? mcore + "input_layernorm.weight"
                                                    : attention + "linear_qkv.layer_norm_weight",
                        layer.input_norm, place_.tp);
    add_interleaved_qkv(attention + "linear_qkv.weight", *layer.qkv);
    if (layer.qkv_bias) add_interleaved_qkv(attention + "linear_qkv.bias", *layer.qkv_bias);
    if (layer.q_norm) {
      builder_.replicated(attention + "q_layernorm.weight", *layer.q_norm, place_.tp);
    }
    if (layer.k_norm) {
      builder_.replicated(attention + "k_layernorm.weight", *layer.k_norm, place_.tp);
    }
  }

  /// core/transformer/attention.py: for each query group its query heads, its key, its value. A
  /// rank owns a contiguous run of these rows, also when there are more ranks than groups.
  void add_interleaved_qkv(std::string name, const QkvTensors& qkv) {
    builder_.begin(std::move(name));
    const uint64_t groups = trainer_.catalogue.config().kv_heads;
    const uint64_t queries = builder_.info(qkv.q).rows / groups;
    const uint64_t head = builder_.info(qkv.k).rows / groups;
    const uint64_t group_rows = queries + 2 * head;
    const Range mine = place_.tp.of(group_rows * groups);
    const auto add_block = [&](uint32_t tensor, uint64_t fused_begin, Range rows) {
      // Rows `rows` of the canonical tensor stand at fused_begin; keep what is this rank's.
      const Range held = intersect(mine, {fused_begin, fused_begin + rows.size()});
      if (held.empty()) return;
      const uint64_t begin = rows.begin + (held.begin - fused_begin);
      builder_.add(tensor, {{begin, begin + held.size()}, {0, builder_.info(tensor).cols}}, {});
    };
    for (uint64_t g = mine.begin / group_rows; g <= (mine.end - 1) / group_rows; ++g) {
      const uint64_t base = g * group_rows;
      add_block(qkv.q, base, {g * queries, (g + 1) * queries});
      add_block(qkv.k, base + queries, {g * head, (g + 1) * head});
      add_block(qkv.v, base + queries + head, {g * head, (g + 1) * head});
    }
  }

  /// core/transformer/multi_latent_attention.py. Transformer Engine fuses the latent norms into the
  /// up projections and replicates the down projections; the local spec does neither.
  void add_latent_attention(const std::string& mcore, const LayerTensors& layer) {
    const LatentTensors& latent = *layer.latent;
    const auto attention = mcore + "self_attention.";
    builder_.replicated(mcore + "input_layernorm.weight", layer.input_norm, place_.tp);
    if (latent.q_down) {
      add_down_projection(attention + "linear_q_down_proj.weight", *latent.q_down);
      add_latent_norm(attention, "q", *latent.q_norm);
    }
    builder_.split_rows(
        attention + (latent.q_down ? "linear_q_up_proj.weight" : "linear_q_proj.weight"),
        latent.q_up, place_.tp);
    add_down_projection(attention + "linear_kv_down_proj.weight", latent.kv_down);
    add_latent_norm(attention, "kv", latent.kv_norm);
    builder_.split_rows(attention + "linear_kv_up_proj.weight", latent.kv_up, place_.tp);
  }

  void add_down_projection(std::string name, uint32_t tensor) {
    if (trainer_.options.local_spec) {
      builder_.split_rows(std::move(name), tensor, place_.tp);
    } else {
      builder_.replicated(std::move(name), tensor, place_.tp);
    }
  }

  void add_latent_norm(const std::string& attention, const char* which, uint32_t tensor) {
    const char* const form = trainer_.options.local_spec ? "{}{}_layernorm.weight"
                                                         : "{}linear_{}_up_proj.layer_norm_weight";
    builder_.replicated(fmt::format(fmt::runtime(form), attention, which), tensor, place_.tp);
  }

  void add_moe(const std::string& mcore, const MoeTensors& moe) {
    builder_.replicated(mcore + "router.weight", moe.router, place_.tp);
    if (moe.router_bias) {
      builder_.replicated(mcore + "router.expert_bias", *moe.router_bias, place_.tp);
    }
    builder_.set_replica_group(place_.expert_replica);
    const Range mine = place_.ep.of(moe.experts);
    for (uint64_t e = mine.begin; e < mine.end; ++e) {
      add_expert(mcore + "experts.", e - mine.begin, moe.expert(static_cast<uint32_t>(e)));
    }
    builder_.set_replica_group(place_.replica);
    if (moe.shared) {
      add_mlp(mcore + "shared_experts.linear_fc", ".weight", *moe.shared, place_.tp);
    }
    if (moe.shared_gate) {
      builder_.replicated(mcore + "shared_experts.gate_weight", *moe.shared_gate, place_.tp);
    }
  }

  void add_expert(const std::string& experts, uint64_t local, const MlpTensors& expert) {
    if (trainer_.options.sequential_experts) {
      add_mlp(fmt::format("{}local_experts.{}.linear_fc", experts, local), ".weight", expert,
              place_.etp);
    } else {
      add_mlp(experts + "linear_fc", fmt::format(".weight{}", local), expert, place_.etp);
    }
  }

  /// "<name>1<suffix>" holds this rank's gate rows, then its up rows; "<name>2<suffix>" its columns
  /// of the down projection.
  void add_mlp(const std::string& name, const std::string& suffix, const MlpTensors& mlp,
               Part group) {
    builder_.begin(name + "1" + suffix);
    builder_.add_rows(mlp.gate, group);
    builder_.add_rows(mlp.up, group);
    builder_.split_cols(name + "2" + suffix, mlp.down, group);
  }

  const Trainer& trainer_;
  const Place& place_;
  RankLayoutBuilder builder_;
  std::string prefix_;
};

class MegatronLayout final : public Layout {
 public:
  MegatronLayout(Trainer trainer, uint32_t ranks) : trainer_(std::move(trainer)), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return trainer_.options.describe(); }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    const uint32_t stage_ranks = ranks_ / trainer_.options.pipeline.pp;
    const Place place = Place::of(trainer_.options, rank % stage_ranks);
    return RankWriter(trainer_, place).all(trainer_.pipeline[rank / stage_ranks]);
  }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override {
    const auto& options = trainer_.options;
    const uint32_t stage_ranks = ranks_ / options.pipeline.pp;
    const uint32_t in_stage = rank % stage_ranks;
    return rank - in_stage + in_stage % std::lcm(options.tp, options.etp * options.ep);
  }

 private:
  Trainer trainer_;
  uint32_t ranks_;
};

}  // namespace

std::unique_ptr<Layout> make_megatron_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                             uint32_t ranks) {
  const auto options = MegatronOptions::read(spec);
  auto tensors = find_tensors(catalogue);
  options.check(catalogue, tensors.layers, ranks);
  Trainer trainer{.catalogue = catalogue,
                  .options = options,
                  .pipeline = megatron_pipeline(options.pipeline, catalogue.config().layers),
                  .tensors = std::move(tensors)};
  return std::make_unique<MegatronLayout>(std::move(trainer), ranks);
}

}  // namespace awex
