// Megatron-core, from core/transformer/{transformer_block,transformer_layer,attention,mlp,
// multi_latent_attention}.py, core/parallel_state.py and training/vocab_utils.py.
#include <fmt/format.h>

#include "support/oracle_writer.hpp"

namespace awex::test {
namespace {

/// "Et*2|(t|)*2L" -> "Ett|t|t|L".
std::string spell_out(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    std::string unit(1, text[i]);
    if (text[i] == '(') {
      const size_t close = text.find(')', i);
      unit = spell_out(text.substr(i + 1, close - i - 1));
      i = close;
    }
    ++i;
    uint64_t times = 1;
    if (i < text.size() && text[i] == '*') {
      size_t digits = 0;
      times = std::stoull(text.substr(i + 1), &digits);
      i += 1 + digits;
    }
    while (times-- > 0) out += unit;
  }
  return out;
}

std::vector<uint64_t> sizes_of_custom_layout(const std::string& text, uint64_t pp) {
  std::vector<uint64_t> sizes{0};
  for (const char c : spell_out(text)) {
    if (c == '|') sizes.push_back(0);
    if (c == 't') ++sizes.back();
  }
  must_divide(sizes.size(), pp, "stages of a custom layout");
  return sizes;
}

/// Layers of each stage when first, last or both are given; the others share the rest evenly.
std::vector<uint64_t> sizes_of_stages(const EngineCase& engine, uint64_t layers, uint64_t pp) {
  const bool has_first = engine.options.count("first") > 0;
  const bool has_last = engine.options.count("last") > 0;
  const uint64_t first = has_first ? engine.number("first") : 0;
  const uint64_t last = has_last ? engine.number("last") : 0;
  const uint64_t given = (has_first ? 1 : 0) + (has_last ? 1 : 0);
  if (given > pp || first + last > layers) throw DoesNotDivide{"first and last are too many"};
  if (given == pp && first + last != layers) throw DoesNotDivide{"first and last are too few"};
  const uint64_t middle =
      given == pp ? 0 : divide(layers - first - last, pp - given, "layers of the middle stages");
  std::vector<uint64_t> sizes(pp, middle);
  if (has_first) sizes.front() = first;
  if (has_last) sizes.back() = last;
  return sizes;
}

/// The embedding and the loss count as a layer each, and take the place of one.
std::vector<uint64_t> sizes_with_ends(const EngineCase& engine, uint64_t layers, uint64_t pp,
                                      uint64_t vpp) {
  const uint64_t embedding = engine.on("account_for_embedding") ? 1 : 0;
  const uint64_t loss = engine.on("account_for_loss") ? 1 : 0;
  const uint64_t a_stage = divide(layers + embedding + loss, pp, "layers and ends a stage");
  std::vector<uint64_t> sizes(pp * vpp, divide(a_stage, vpp, "layers and ends a chunk"));
  if (sizes.front() < embedding || sizes.back() < loss) throw DoesNotDivide{"no room for an end"};
  sizes.front() -= embedding;
  if (sizes.back() < loss) throw DoesNotDivide{"no room for both ends"};
  sizes.back() -= loss;
  return sizes;
}

class Megatron : public Writer {
 public:
  Megatron(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank, uint64_t ranks)
      : Writer(catalogue), engine_(engine), pp_(engine.number("pp")) {
    const uint64_t cp = engine.number("cp");
    const uint64_t ep = engine.number("ep");
    const uint64_t etp = engine.number("etp", engine.tp);
    const uint64_t dp = divide(ranks, engine.tp * cp * pp_, "ranks over tp, cp and pp");
    const auto dense = grid_place(rank, {engine.tp, cp, dp, pp_});
    tp_ = {engine.tp, dense[0]};
    stage_ = dense[3];
    if (config().experts == 0) return;
    const uint64_t edp = divide(ranks, etp * ep * pp_, "ranks over etp, ep and pp");
    const auto sparse = grid_place(rank, {etp, ep, edp, pp_});
    etp_ = {etp, sparse[0]};
    ep_ = {ep, sparse[1]};
  }

  RankContents contents() {
    check_all_ranks();
    const auto chunks = megatron_chunks(engine_, config().layers);
    for (uint64_t i = stage_; i < chunks.size(); i += pp_) {
      chunk_ = i < pp_ ? "" : fmt::format("chunk{}.", i / pp_);
      if (i == 0) put("embedding.word_embeddings.weight", vocabulary("model.embed_tokens.weight"));
      uint64_t local = 0;
      for (const uint64_t layer : chunks[i]) write_layer(layer, local++);
      if (i == norm_chunk(chunks)) {
        put(chunk_ + "decoder.final_layernorm.weight", canonical("model.norm.weight"));
      }
      if (i + 1 == chunks.size()) write_output(i == 0);
    }
    return take();
  }

 private:
  /// A size may not divide on a stage that this rank is not in.
  void check_all_ranks() const {
    must_divide(config().heads, tp_.count, "attention heads");
    if (config().attention_out_bias) throw DoesNotDivide{"tp: a bias on o_proj alone"};
    for (const TensorInfo& tensor : catalogue().tensors()) {
      const bool expert = tensor.name.find(".experts.") != std::string::npos;
      if (!is_gate_matrix(tensor.name)) continue;
      must_divide(tensor.rows, expert ? etp_.count : tp_.count, tensor.name);
    }
  }

  [[nodiscard]] IdMatrix vocabulary(const std::string& name) const {
    const uint64_t step = engine_.number("pad_vocab", 128);
    const uint64_t groups = engine_.on("pad_with_tp", true) ? tp_.count : 1;
    return row_part(pad_rows(canonical(name), padded_to(config().vocab, step * groups)), tp_,
                    "vocabulary");
  }

  /// Layers for multi-token prediction take the last layer's output normed.
  [[nodiscard]] uint64_t norm_chunk(const std::vector<std::vector<uint64_t>>& chunks) const {
    uint64_t at = chunks.size() - 1;
    if (engine_.text("layout", "").find('m') == std::string::npos) return at;
    while (chunks.at(at).empty()) --at;
    return at;
  }

  void write_output(bool also_first) {
    if (has("lm_head.weight")) {
      put(chunk_ + "output_layer.weight", vocabulary("lm_head.weight"));
    } else if (!also_first) {
      // The tied output shares the embedding's memory only where the embedding is.
      put(chunk_ + "output_layer.weight", vocabulary("model.embed_tokens.weight"));
    }
  }

  void write_layer(uint64_t layer, uint64_t local) {
    const std::string from = fmt::format("model.layers.{}.", layer);
    const std::string to = fmt::format("{}decoder.layers.{}.", chunk_, local);
    if (has(from + "self_attn.kv_b_proj.weight")) {
      write_latent_attention(from, to);
    } else {
      write_attention(from + "self_attn.", to + "self_attention.");
      put(to + (te() ? "self_attention.linear_qkv.layer_norm_weight" : "input_layernorm.weight"),
          canonical(from + "input_layernorm.weight"));
    }
    put(to + "self_attention.linear_proj.weight",
        col_part(canonical(from + "self_attn.o_proj.weight"), tp_, "o_proj columns"));
    const IdMatrix norm = canonical(from + "post_attention_layernorm.weight");
    if (const std::string moe = from + moe_module(config()) + "."; has(moe + "gate.weight")) {
      put(to + "pre_mlp_layernorm.weight", norm);
      write_experts(moe, to + "mlp.");
    } else {
      put(to + (te() ? "mlp.linear_fc1.layer_norm_weight" : "pre_mlp_layernorm.weight"), norm);
      write_mlp(to + "mlp.", from + "mlp.", tp_);
    }
  }

  [[nodiscard]] bool te() const { return engine_.text("spec", "te") == "te"; }

  void write_attention(const std::string& from, const std::string& to) {
    put(to + "linear_qkv.weight",
        row_part(interleaved_qkv(from, "weight"), tp_, "rows of the fused QKV"));
    if (has(from + "q_proj.bias")) {
      put(to + "linear_qkv.bias", row_part(interleaved_qkv(from, "bias"), tp_, "fused bias"));
    }
    if (has(from + "q_norm.weight")) {
      put(to + "q_layernorm.weight", canonical(from + "q_norm.weight"));
      put(to + "k_layernorm.weight", canonical(from + "k_norm.weight"));
    }
  }

  /// The whole fused tensor: for each KV head its query heads, then its key, then its value.
  [[nodiscard]] IdMatrix interleaved_qkv(const std::string& from, const std::string& kind) const {
    const IdMatrix q = canonical(from + "q_proj." + kind);
    const IdMatrix k = canonical(from + "k_proj." + kind);
    const IdMatrix v = canonical(from + "v_proj." + kind);
    const uint64_t d = config().head_dim;
    const uint64_t queries = divide(config().heads, config().kv_heads, "query heads a KV head");
    std::vector<IdMatrix> parts;
    for (uint64_t group = 0; group < config().kv_heads; ++group) {
      for (uint64_t i = 0; i < queries; ++i) {
        parts.push_back(rows_of(q, (group * queries + i) * d, d));
      }
      parts.push_back(rows_of(k, group * d, d));
      parts.push_back(rows_of(v, group * d, d));
    }
    return stack(parts);
  }

  void write_latent_attention(const std::string& layer, const std::string& to_layer) {
    const std::string from = layer + "self_attn.";
    const std::string to = to_layer + "self_attention.";
    put(to_layer + "input_layernorm.weight", canonical(layer + "input_layernorm.weight"));
    if (has(from + "q_a_proj.weight")) {
      put(to + "linear_q_down_proj.weight", down_projection(from + "q_a_proj.weight"));
      put(to + (te() ? "linear_q_up_proj.layer_norm_weight" : "q_layernorm.weight"),
          canonical(from + "q_a_layernorm.weight"));
      put(to + "linear_q_up_proj.weight",
          row_part(canonical(from + "q_b_proj.weight"), tp_, "q_b_proj rows"));
    } else {
      put(to + "linear_q_proj.weight",
          row_part(canonical(from + "q_proj.weight"), tp_, "q_proj rows"));
    }
    put(to + "linear_kv_down_proj.weight", down_projection(from + "kv_a_proj_with_mqa.weight"));
    put(to + (te() ? "linear_kv_up_proj.layer_norm_weight" : "kv_layernorm.weight"),
        canonical(from + "kv_a_layernorm.weight"));
    put(to + "linear_kv_up_proj.weight",
        row_part(canonical(from + "kv_b_proj.weight"), tp_, "kv_b_proj rows"));
  }

  [[nodiscard]] IdMatrix down_projection(const std::string& name) const {
    return te() ? canonical(name) : row_part(canonical(name), tp_, name);
  }

  void write_mlp(const std::string& to, const std::string& from, Slice slice) {
    put(to + "linear_fc1.weight", gate_up(from, slice));
    put(to + "linear_fc2.weight", down(from, slice));
  }

  void write_experts(const std::string& from, const std::string& to) {
    put(to + "router.weight", canonical(from + "gate.weight"));
    if (has(from + "gate.e_score_correction_bias")) {
      put(to + "router.expert_bias", canonical(from + "gate.e_score_correction_bias"));
    }
    if (const std::string shared = shared_experts(from); !shared.empty()) {
      write_mlp(to + "shared_experts.", shared, tp_);
    }
    if (has(from + "shared_expert_gate.weight")) {
      put(to + "shared_experts.gate_weight", canonical(from + "shared_expert_gate.weight"));
    }
    const uint64_t local = divide(config().experts, ep_.count, "experts");
    for (uint64_t i = 0; i < local; ++i) {
      const std::string expert = fmt::format("{}experts.{}.", from, ep_.index * local + i);
      if (engine_.text("experts", "grouped") == "sequential") {
        write_mlp(fmt::format("{}experts.local_experts.{}.", to, i), expert, etp_);
      } else {
        put(fmt::format("{}experts.linear_fc1.weight{}", to, i), gate_up(expert, etp_));
        put(fmt::format("{}experts.linear_fc2.weight{}", to, i), down(expert, etp_));
      }
    }
  }

  const EngineCase& engine_;
  uint64_t pp_;
  Slice tp_;
  Slice etp_;
  Slice ep_;
  uint64_t stage_ = 0;
  std::string chunk_;
};

}  // namespace

std::vector<std::vector<uint64_t>> megatron_chunks(const EngineCase& engine, uint64_t layers) {
  const uint64_t pp = engine.number("pp");
  const uint64_t vpp = engine.number("vpp");
  if (const std::string custom = engine.text("layout", ""); !custom.empty()) {
    return deal_layers(sizes_of_custom_layout(custom, pp), layers);
  }
  if (engine.on("account_for_embedding") || engine.on("account_for_loss")) {
    return deal_layers(sizes_with_ends(engine, layers, pp, vpp), layers);
  }
  std::vector<uint64_t> sizes;
  for (uint64_t chunk = 0; chunk < vpp; ++chunk) {
    for (const uint64_t stage : sizes_of_stages(engine, layers, pp)) {
      sizes.push_back(divide(stage, vpp, "layers of a stage over its chunks"));
    }
  }
  return deal_layers(sizes, layers);
}

RankContents megatron_contents(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank,
                               uint64_t ranks) {
  return Megatron(engine, catalogue, rank, ranks).contents();
}

}  // namespace awex::test
