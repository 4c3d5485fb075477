#include "layout/megatron.hpp"

#include "base/checked.hpp"
#include "layout/builder.hpp"

namespace awex {
namespace {

class MegatronLayout final : public Layout {
 public:
  MegatronLayout(const Catalogue& catalogue, uint32_t tp, uint32_t ranks)
      : catalogue_(catalogue), config_(catalogue.config()), tp_(tp), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return fmt::format("megatron:tp={}", tp_); }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override { return rank % tp_; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    RankLayoutBuilder builder(catalogue_, rank / tp_);
    const Part tp{tp_, rank % tp_};
    builder.split_padded_rows("embedding.word_embeddings.weight", "model.embed_tokens.weight",
                              padded_vocab(), tp);
    for (uint64_t layer = 0; layer < config_.layers; ++layer) add_layer(builder, layer, tp);
    builder.replicated("decoder.final_layernorm.weight", "model.norm.weight", tp);
    if (!config_.tied_embeddings) {
      builder.split_padded_rows("output_layer.weight", "lm_head.weight", padded_vocab(), tp);
    }
    return builder.finish();
  }

 private:
  /// training/vocab_utils.py: a multiple of 128 on every tensor-parallel rank.
  [[nodiscard]] uint64_t padded_vocab() const {
    return round_up(config_.vocab, uint64_t{128} * tp_);
  }

  void add_layer(RankLayoutBuilder& builder, uint64_t layer, Part tp) const {
    const auto mcore = fmt::format("decoder.layers.{}.", layer);
    const auto hf = fmt::format("model.layers.{}.", layer);
    add_attention(builder, mcore + "self_attention.", hf, tp);
    if (config_.is_moe_layer(layer)) {
      builder.replicated(mcore + "pre_mlp_layernorm.weight", hf + "post_attention_layernorm.weight",
                         tp);
      add_experts(builder, mcore + "mlp.", hf + "mlp.", tp);
    } else {
      builder.replicated(mcore + "mlp.linear_fc1.layer_norm_weight",
                         hf + "post_attention_layernorm.weight", tp);
      add_mlp(builder, mcore + "mlp.linear_fc1.weight", mcore + "mlp.linear_fc2.weight",
              hf + "mlp.", tp);
    }
  }

  void add_attention(RankLayoutBuilder& builder, const std::string& mcore, const std::string& hf,
                     Part tp) const {
    builder.replicated(mcore + "linear_qkv.layer_norm_weight", hf + "input_layernorm.weight", tp);
    add_interleaved_qkv(builder, mcore + "linear_qkv.weight", hf + "self_attn.", ".weight", tp);
    if (config_.attention_bias) {
      add_interleaved_qkv(builder, mcore + "linear_qkv.bias", hf + "self_attn.", ".bias", tp);
    }
    if (config_.qk_norm) {
      builder.replicated(mcore + "q_layernorm.weight", hf + "self_attn.q_norm.weight", tp);
      builder.replicated(mcore + "k_layernorm.weight", hf + "self_attn.k_norm.weight", tp);
    }
    builder.split_cols(mcore + "linear_proj.weight", hf + "self_attn.o_proj.weight", tp);
  }

  /// core/transformer/attention.py: for each query group its query heads, its key, its value. A
  /// rank owns a contiguous run of these rows, also when there are more ranks than groups.
  void add_interleaved_qkv(RankLayoutBuilder& builder, const std::string& name,
                           const std::string& prefix, const std::string& suffix, Part tp) const {
    builder.begin(name);
    const uint64_t head = config_.head_dim;
    const uint64_t queries = config_.heads / config_.kv_heads * head;
    const uint64_t group_rows = queries + 2 * head;
    const Range mine = tp.of(group_rows * config_.kv_heads);
    const auto add_block = [&](const char* projection, uint64_t fused_begin, Range rows) {
      // Rows `rows` of the canonical tensor stand at fused_begin; keep what is this rank's.
      const Range held = intersect(mine, {fused_begin, fused_begin + rows.size()});
      if (held.empty()) return;
      const uint64_t begin = rows.begin + (held.begin - fused_begin);
      const auto tensor = prefix + projection + suffix;
      const auto& info = catalogue_.tensors()[catalogue_.index_of(tensor)];
      builder.add(tensor, {{begin, begin + held.size()}, {0, info.cols}}, {});
    };
    for (uint64_t g = mine.begin / group_rows; g <= (mine.end - 1) / group_rows; ++g) {
      const uint64_t base = g * group_rows;
      add_block("q_proj", base, {g * queries, (g + 1) * queries});
      add_block("k_proj", base + queries, {g * head, (g + 1) * head});
      add_block("v_proj", base + queries + head, {g * head, (g + 1) * head});
    }
  }

  static void add_mlp(RankLayoutBuilder& builder, const std::string& fc1, const std::string& fc2,
                      const std::string& hf, Part tp) {
    builder.begin(fc1);
    builder.add_rows(hf + "gate_proj.weight", tp);
    builder.add_rows(hf + "up_proj.weight", tp);
    builder.split_cols(fc2, hf + "down_proj.weight", tp);
  }

  void add_experts(RankLayoutBuilder& builder, const std::string& mcore, const std::string& hf,
                   Part tp) const {
    builder.replicated(mcore + "router.weight", hf + "gate.weight", tp);
    for (uint64_t e = 0; e < config_.experts; ++e) {
      add_mlp(builder, fmt::format("{}experts.linear_fc1.weight{}", mcore, e),
              fmt::format("{}experts.linear_fc2.weight{}", mcore, e),
              fmt::format("{}experts.{}.", hf, e), tp);
    }
  }

  const Catalogue& catalogue_;
  const ModelConfig& config_;
  uint32_t tp_;
  uint32_t ranks_;
};

void check_model(const ModelConfig& config, uint32_t tp) {
  check_divides("num_attention_heads", config.heads, "tp", tp);
  check_divides("rows of the fused QKV", (config.heads + 2 * config.kv_heads) * config.head_dim,
                "tp", tp);
  for (uint64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe_layer(layer)) {
      check_divides("moe_intermediate_size", config.moe_intermediate, "tp", tp);
    } else {
      check_divides("intermediate_size", config.intermediate, "tp", tp);
    }
  }
}

}  // namespace

std::unique_ptr<Layout> make_megatron_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                             uint32_t ranks) {
  spec.allow_only({"tp"});
  const uint32_t tp = spec.count("tp", 1);
  check_divides("trainer ranks", ranks, "tp", tp);
  check_model(catalogue.config(), tp);
  return std::make_unique<MegatronLayout>(catalogue, tp, ranks);
}

}  // namespace awex
