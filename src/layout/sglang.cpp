#include "layout/sglang.hpp"

#include "base/checked.hpp"
#include "layout/builder.hpp"

namespace awex {
namespace {

class SglangLayout final : public Layout {
 public:
  SglangLayout(const Catalogue& catalogue, uint32_t tp, uint32_t ranks)
      : catalogue_(catalogue), config_(catalogue.config()), tp_(tp), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return fmt::format("sglang:tp={}", tp_); }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override { return rank % tp_; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    RankLayoutBuilder builder(catalogue_, rank / tp_);
    const Part tp{tp_, rank % tp_};
    builder.split_padded_rows("model.embed_tokens.weight", "model.embed_tokens.weight",
                              padded_vocab(config_), tp);
    for (uint64_t layer = 0; layer < config_.layers; ++layer) add_layer(builder, layer, tp);
    builder.replicated("model.norm.weight", "model.norm.weight", tp);
    if (!config_.tied_embeddings) {
      builder.split_padded_rows("lm_head.weight", "lm_head.weight", padded_vocab(config_), tp);
    }
    return builder.finish();
  }

  /// layers/vocab_parallel_embedding.py: a multiple of 64 in all, padding at the global end.
  [[nodiscard]] static uint64_t padded_vocab(const ModelConfig& config) {
    return round_up(config.vocab, 64);
  }

 private:
  void add_layer(RankLayoutBuilder& builder, uint64_t layer, Part tp) const {
    const auto prefix = fmt::format("model.layers.{}.", layer);
    builder.replicated(prefix + "input_layernorm.weight", prefix + "input_layernorm.weight", tp);
    add_attention(builder, prefix + "self_attn.", tp);
    builder.replicated(prefix + "post_attention_layernorm.weight",
                       prefix + "post_attention_layernorm.weight", tp);
    if (config_.is_moe_layer(layer)) {
      add_experts(builder, prefix + "mlp.", tp);
    } else {
      add_gate_up(builder, prefix + "mlp.gate_up_proj.weight", prefix + "mlp.", tp);
      builder.split_cols(prefix + "mlp.down_proj.weight", prefix + "mlp.down_proj.weight", tp);
    }
  }

  void add_attention(RankLayoutBuilder& builder, const std::string& prefix, Part tp) const {
    add_fused_qkv(builder, prefix, ".weight", tp);
    if (config_.attention_bias) add_fused_qkv(builder, prefix, ".bias", tp);
    if (config_.qk_norm) {
      builder.replicated(prefix + "q_norm.weight", prefix + "q_norm.weight", tp);
      builder.replicated(prefix + "k_norm.weight", prefix + "k_norm.weight", tp);
    }
    builder.split_cols(prefix + "o_proj.weight", prefix + "o_proj.weight", tp);
  }

  /// layers/linear.py, QKVParallelLinear: this rank's query heads, then its key and value heads;
  /// with more ranks than KV heads, tp / kv_heads neighbours share one.
  void add_fused_qkv(RankLayoutBuilder& builder, const std::string& prefix,
                     const std::string& suffix, Part tp) const {
    builder.begin(prefix + "qkv_proj" + suffix);
    builder.add_rows(prefix + "q_proj" + suffix, tp);
    const uint32_t sharers = tp_ > config_.kv_heads ? tp_ / narrow<uint32_t>(config_.kv_heads) : 1;
    const Part heads{tp_ / sharers, tp.index / sharers};
    for (const char* projection : {"k_proj", "v_proj"}) {
      const auto tensor = prefix + projection + suffix;
      const auto& info = catalogue_.tensors()[catalogue_.index_of(tensor)];
      builder.add(tensor, {heads.of(info.rows), {0, info.cols}}, {sharers, tp.index % sharers});
    }
  }

  static void add_gate_up(RankLayoutBuilder& builder, const std::string& name,
                          const std::string& prefix, Part tp) {
    builder.begin(name);
    builder.add_rows(prefix + "gate_proj.weight", tp);
    builder.add_rows(prefix + "up_proj.weight", tp);
  }

  /// layers/moe/fused_moe_triton/layer.py: w13 [experts, 2M/tp, H] with rows [gate; up] an expert,
  /// w2 [experts, H, M/tp].
  void add_experts(RankLayoutBuilder& builder, const std::string& prefix, Part tp) const {
    builder.replicated(prefix + "gate.weight", prefix + "gate.weight", tp);
    builder.begin(prefix + "experts.w13_weight");
    for (uint64_t e = 0; e < config_.experts; ++e) {
      const auto expert = fmt::format("{}experts.{}.", prefix, e);
      builder.add_rows(expert + "gate_proj.weight", tp);
      builder.add_rows(expert + "up_proj.weight", tp);
    }
    builder.begin(prefix + "experts.w2_weight");
    for (uint64_t e = 0; e < config_.experts; ++e) {
      builder.add_cols(fmt::format("{}experts.{}.down_proj.weight", prefix, e), tp);
    }
  }

  const Catalogue& catalogue_;
  const ModelConfig& config_;
  uint32_t tp_;
  uint32_t ranks_;
};

void check_model(const ModelConfig& config, uint32_t tp) {
  check_divides("num_attention_heads", config.heads, "tp", tp);
  if (config.kv_heads % tp != 0 && tp % config.kv_heads != 0) {
    throw request_error(
        fmt::format("tp={} neither divides nor is a multiple of "
                    "num_key_value_heads = {}",
                    tp, config.kv_heads));
  }
  check_divides("padded vocabulary", SglangLayout::padded_vocab(config), "tp", tp);
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) {
      check_divides("moe_intermediate_size", config.moe_intermediate, "tp", tp);
    } else {
      check_divides("intermediate_size", config.intermediate, "tp", tp);
    }
  }
}

}  // namespace

std::unique_ptr<Layout> make_sglang_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                           uint32_t ranks) {
  spec.allow_only({"tp"});
  const uint32_t tp = spec.count("tp", 1);
  check_divides("inference ranks", ranks, "tp", tp);
  check_model(catalogue.config(), tp);
  return std::make_unique<SglangLayout>(catalogue, tp, ranks);
}

}  // namespace awex
