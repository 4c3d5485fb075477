// SGLang (srt/distributed/parallel_state.py, layers/{linear,vocab_parallel_embedding}.py,
// layers/moe/fused_moe_triton/layer.py, models/qwen3_moe.py, models/deepseek_v2.py) and vLLM
// (distributed/utils.py, model_executor/layers/fused_moe/config.py, models/deepseek_v2.py).
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "support/oracle_writer.hpp"

namespace awex::test {
namespace {

/// What a rank does, whichever of the two engines it is of.
struct Seat {
  uint64_t stage = 0;
  Slice dense;      ///< Dense MLPs.
  Slice shared;     ///< Shared experts.
  Slice attention;  ///< Heads.
  Slice embedding;
  Slice head;
  Slice expert;                   ///< The inside of an expert.
  std::vector<uint64_t> experts;  ///< Those that it holds.
  bool fuses_shared = false;
};

std::vector<uint64_t> counting(uint64_t first, uint64_t count) {
  std::vector<uint64_t> out;
  for (uint64_t i = 0; i < count; ++i) out.push_back(first + i);
  return out;
}

/// models/*.py of SGLang 0.5.23: what they do with the shared expert when nothing is said.
const char* usual_fusion(const EngineCase& engine, const ModelConfig& config) {
  const bool apart = config.shared_experts != 1 || engine.number("ep") > 1 ||
                     engine.text("shared_experts", "tp") != "tp";
  const bool glm = config.family == "glm4_moe" || config.family == "glm4_moe_lite";
  const bool v3 = config.family == "deepseek_v3" && config.experts == 256;
  return !apart && (glm || v3) ? "on" : "off";
}

Seat sglang_seat(const EngineCase& engine, const ModelConfig& config, uint64_t rank) {
  const uint64_t experts = config.experts;
  const uint64_t tp = engine.tp;
  const uint64_t attention = divide(tp, engine.number("attn_dp"), "tp over attn_dp");
  const bool any_tp = experts == 0 || config.family == "mixtral";
  if (!any_tp && tp > experts) throw DoesNotDivide{"tp above experts"};
  const uint64_t ep = experts == 0 ? 1 : engine.number("ep");
  const uint64_t inside = divide(tp, ep, "tp over ep");
  const uint64_t t = rank % tp;
  Seat seat;
  seat.stage = rank / tp % engine.number("pp");
  const Slice tensor{tp, t};
  const auto is_one_of = [&](std::initializer_list<const char*> families) {
    return std::any_of(families.begin(), families.end(),
                       [&](const char* family) { return config.family == family; });
  };
  const bool llama = is_one_of({"llama", "mistral", "mixtral"});
  const bool old_class = llama || is_one_of({"qwen2", "mimo"});
  const bool plain_head = is_one_of({"qwen2", "mimo", "mixtral"});
  const bool dense_first = is_one_of({"deepseek_v3", "glm4_moe", "glm4_moe_lite"});
  const bool whole_dense = dense_first && engine.text("dense_mlp", "tp") == "replicated";
  seat.dense = whole_dense ? Slice{} : tensor;
  seat.shared = engine.text("shared_experts", "tp") == "tp" ? tensor : Slice{};
  const Slice replica{attention, t % attention};
  seat.attention = old_class ? tensor : replica;
  const std::string embed = engine.text("embed", llama ? "tp" : "attn_tp");
  seat.embedding = embed == "replicated" ? Slice{} : embed == "tp" ? tensor : replica;
  seat.head = engine.on("dp_lm_head") && !plain_head ? replica : tensor;
  seat.expert = {inside, t % inside};
  const uint64_t local = divide(experts, ep, "experts");
  seat.experts = counting(t / inside % ep * local, local);
  seat.fuses_shared = engine.text("fuse_shared", usual_fusion(engine, config)) == "on";
  return seat;
}

Seat vllm_seat(const EngineCase& engine, const ModelConfig& config, uint64_t rank) {
  const uint64_t experts = config.experts;
  const uint64_t tp = engine.tp;
  const uint64_t dp = engine.number("dp");
  const auto place =
      grid_place(rank % (tp * engine.number("pp") * dp), {tp, engine.number("pp"), dp});
  Seat seat;
  seat.stage = place[1];
  seat.dense = seat.shared = seat.attention = seat.embedding = seat.head = {tp, place[0]};
  const Slice flat{dp * tp, place[2] * tp + place[0]};
  // Sequence parallel MoE, which GLM has not, wants whole shared experts on every rank.
  const bool sequence = config.family == "deepseek_v3" && engine.on("ep") && tp > 1 && dp > 1;
  if (engine.text("shared_experts", sequence ? "replicated" : "tp") != "tp") seat.shared = {};
  if (!engine.on("ep")) {
    seat.expert = flat;
    seat.experts = counting(0, experts);
    return seat;
  }
  uint64_t first = 0;
  for (uint64_t part = 0; part <= flat.index; ++part) {
    const uint64_t count = experts / flat.count + (part < experts % flat.count ? 1 : 0);
    seat.experts = counting(first, count);
    first += count;
  }
  return seat;
}

class Inference : public Writer {
 public:
  Inference(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank)
      : Writer(catalogue, scale_block(engine)),
        sglang_(engine.engine == "sglang"),
        experts_(!sglang_ && engine.text("version", "0.33") >= "0.24" ? "experts.routed_experts."
                                                                      : "experts."),
        stored_head_(!sglang_ && engine.on("stored_head")),
        stages_(inference_stages(engine, config().layers)),
        seat_(sglang_ ? sglang_seat(engine, config(), rank) : vllm_seat(engine, config(), rank)) {}

  RankContents contents() {
    check_class();
    check_all_ranks();
    // vLLM's older classes of experts build both ends of the model on every stage.
    const bool all = !sglang_ && is_one_of({"qwen3_moe", "qwen2_moe", "mixtral"});
    const bool first = all || seat_.stage == 0;
    const bool last = all || seat_.stage + 1 == stages_.size();
    const bool tied = !has("lm_head.weight");
    // vLLM's last stage uses an embedding of its own as the tied output, by the head's name where
    // files store one; SGLang's has an lm_head.
    if (first || (last && tied && !sglang_)) {
      put(first || !stored_head_ ? "model.embed_tokens.weight" : "lm_head.weight",
          vocabulary("model.embed_tokens.weight", seat_.embedding));
    }
    for (const uint64_t layer : stages_.at(seat_.stage)) {
      write_layer(fmt::format("model.layers.{}.", layer));
    }
    if (last) put("model.norm.weight", canonical("model.norm.weight"));
    if (!tied && (last || heads_everywhere())) {
      put("lm_head.weight", vocabulary("lm_head.weight", seat_.head));
    }
    if (tied && sglang_ && has_tied_head(first, last)) {
      put("lm_head.weight", vocabulary("model.embed_tokens.weight", seat_.head));
    }
    return take();
  }

 private:
  [[nodiscard]] bool is_one_of(std::initializer_list<const char*> families) const {
    return std::any_of(families.begin(), families.end(),
                       [&](const char* family) { return config().family == family; });
  }
  [[nodiscard]] bool makes_own_head() const {
    return is_one_of({"qwen3_moe", "qwen2_moe", "mixtral", "glm4_moe", "glm4_moe_lite"});
  }
  [[nodiscard]] bool heads_everywhere() const {
    return sglang_ && (makes_own_head() || is_one_of({"llama", "mistral"}));
  }
  /// Of SGLang's classes: those with experts and a newer head always make one, Llama never a tied
  /// one.
  [[nodiscard]] bool has_tied_head(bool first, bool last) const {
    if (makes_own_head()) return true;
    return !is_one_of({"llama", "mistral", "mimo"}) && last && !first;
  }

  [[nodiscard]] bool is_sparse(uint64_t layer) const {
    return has(fmt::format("model.layers.{}.{}.gate.weight", layer, moe_module(config())));
  }

  [[nodiscard]] bool heads_share_hidden() const {
    return config().hidden == config().heads * config().head_dim;
  }

  void check_sglang() const {
    const bool all_sparse = is_one_of({"qwen3_moe", "qwen2_moe"});
    for (uint64_t layer = 0; all_sparse && layer < config().layers; ++layer) {
      if (!is_sparse(layer)) throw DoesNotDivide{"SGLang's Qwen-MoE has experts in every layer"};
    }
    if (is_one_of({"mixtral", "qwen2_moe"}) && !heads_share_hidden()) {
      throw DoesNotDivide{"SGLang's Mixtral and Qwen2-MoE know no head_dim"};
    }
    if (is_one_of({"mimo"}) && stages_.size() > 1) throw DoesNotDivide{"MiMo has one stage"};
  }

  /// What tests/vllm/against_engine.py found that vLLM 0.32 refuses or builds otherwise.
  void check_vllm() const {
    const bool glm = is_one_of({"glm4_moe", "glm4_moe_lite"});
    if (is_one_of({"qwen2", "qwen2_moe", "mimo"}) && !heads_share_hidden()) {
      throw DoesNotDivide("vLLM's Qwen2 knows no head_dim");
    }
    if (is_one_of({"qwen2_moe"}) && !config().attention_bias) {
      throw DoesNotDivide("vLLM's Qwen2-MoE has biases");
    }
    if (is_one_of({"qwen3_moe", "qwen2_moe"}) && seat_.dense.count > config().experts) {
      throw DoesNotDivide("tp above experts");
    }
    if ((glm || is_one_of({"deepseek_v3"})) && !has("lm_head.weight")) {
      throw DoesNotDivide("vLLM's classes of GLM and DeepSeek tie no head");
    }
    for (const auto& layers : stages_) {
      const bool any = std::any_of(layers.begin(), layers.end(),
                                   [&](uint64_t layer) { return is_sparse(layer); });
      if ((is_one_of({"qwen3_moe"}) || glm) && !any) throw DoesNotDivide("a stage without experts");
    }
  }

  void check_class() const {
    if (is_one_of({"seed_oss"})) throw DoesNotDivide{"neither engine has a class of Seed-OSS"};
  }

  /// A size may not divide on a stage that this rank is not in.
  void check_all_ranks() const {
    if (sglang_) {
      check_sglang();
    } else {
      check_vllm();
    }
    must_divide(config().heads, seat_.attention.count, "attention heads");
    for (const TensorInfo& tensor : catalogue().tensors()) {
      const bool expert = tensor.name.find(".experts.") != std::string::npos;
      if (!is_gate_matrix(tensor.name)) continue;
      const bool shared = tensor.name.find(".shared_expert") != std::string::npos;
      const Slice& slice = expert ? seat_.expert : shared ? seat_.shared : seat_.dense;
      if (!shared || !seat_.fuses_shared) must_divide(tensor.rows, slice.count, tensor.name);
    }
    must_divide(padded_vocabulary(seat_.embedding), seat_.embedding.count, "vocabulary");
    must_divide(padded_vocabulary(seat_.head), seat_.head.count, "vocabulary");
  }

  /// SGLang multiplies its 64 by the parts if they would not come out even.
  [[nodiscard]] uint64_t padded_vocabulary(const Slice& slice) const {
    const uint64_t usual = padded_to(config().vocab, 64);
    const bool uneven = sglang_ && usual % slice.count != 0;
    return uneven ? padded_to(config().vocab, 64 * slice.count) : usual;
  }

  [[nodiscard]] IdMatrix vocabulary(const std::string& name, Slice slice) const {
    return row_part(pad_rows(canonical(name), padded_vocabulary(slice)), slice, "vocabulary");
  }

  void copy(const std::string& name) { put(name, canonical(name)); }
  void copy_if_there(const std::string& name) {
    if (has(name)) copy(name);
  }

  void write_layer(const std::string& at) {
    copy(at + "input_layernorm.weight");
    copy(at + "post_attention_layernorm.weight");
    if (has(at + "self_attn.kv_b_proj.weight")) {
      write_latent_attention(at + "self_attn.");
    } else {
      write_attention(at + "self_attn.");
    }
    put(at + "self_attn.o_proj.weight",
        col_part(canonical(at + "self_attn.o_proj.weight"), seat_.attention, "o_proj columns"));
    copy_if_there(at + "self_attn.o_proj.bias");
    if (const std::string moe = at + moe_module(config()) + "."; has(moe + "gate.weight")) {
      write_experts(moe);
    } else {
      write_mlp(at + "mlp.", seat_.dense);
    }
  }

  void write_attention(const std::string& at) {
    put(at + "qkv_proj.weight", fused_qkv(at, "weight"));
    if (has(at + "q_proj.bias")) put(at + "qkv_proj.bias", fused_qkv(at, "bias"));
    copy_if_there(at + "q_norm.weight");
    copy_if_there(at + "k_norm.weight");
  }

  [[nodiscard]] IdMatrix fused_qkv(const std::string& at, const std::string& kind) const {
    const uint64_t kv = config().kv_heads;
    // With more ranks than KV heads, neighbouring ranks hold the same one.
    const uint64_t blocks = seat_.attention.count >= kv ? kv : seat_.attention.count;
    must_divide(kv, blocks, "KV heads");
    const uint64_t sharers = divide(seat_.attention.count, blocks, "ranks a KV head");
    const Slice block{blocks, seat_.attention.index / sharers};
    return stack({row_part(canonical(at + "q_proj." + kind), seat_.attention, "q rows"),
                  row_part(canonical(at + "k_proj." + kind), block, "k rows"),
                  row_part(canonical(at + "v_proj." + kind), block, "v rows")});
  }

  void write_latent_attention(const std::string& at) {
    copy(at + "kv_a_layernorm.weight");
    put(at + "kv_b_proj.weight",
        row_part(canonical(at + "kv_b_proj.weight"), seat_.attention, "kv_b_proj rows"));
    if (!has(at + "q_a_proj.weight")) {
      copy(at + "kv_a_proj_with_mqa.weight");
      put(at + "q_proj.weight",
          row_part(canonical(at + "q_proj.weight"), seat_.attention, "q_proj rows"));
      return;
    }
    put(at + (sglang_ ? "fused_qkv_a_proj_with_mqa.weight" : "fused_qkv_a_proj.weight"),
        stack({canonical(at + "q_a_proj.weight"), canonical(at + "kv_a_proj_with_mqa.weight")}));
    copy(at + "q_a_layernorm.weight");
    put(at + "q_b_proj.weight",
        row_part(canonical(at + "q_b_proj.weight"), seat_.attention, "q_b_proj rows"));
  }

  void write_mlp(const std::string& at, Slice slice) {
    put(at + "gate_up_proj.weight", gate_up(at, slice));
    put(at + "down_proj.weight", down(at, slice));
  }

  void write_experts(const std::string& at) {
    copy(at + "gate.weight");
    copy_if_there(at + "gate.e_score_correction_bias");
    std::vector<std::string> held;
    for (const uint64_t e : seat_.experts) held.push_back(fmt::format("{}experts.{}.", at, e));
    if (held.empty()) throw DoesNotDivide{"a rank without experts"};
    copy_if_there(at + "shared_expert_gate.weight");
    if (const std::string shared = shared_experts(at); !shared.empty()) {
      if (seat_.fuses_shared) {
        const bool gated = has(at + "shared_expert_gate.weight");
        if (config().shared_experts != 1 || gated) throw DoesNotDivide{"shared experts apart"};
        held.push_back(shared);
      } else {
        write_mlp(shared, seat_.shared);
      }
    }
    std::vector<IdMatrix> w13;
    std::vector<IdMatrix> w2;
    for (const std::string& expert : held) {
      w13.push_back(gate_up(expert, seat_.expert));
      w2.push_back(down(expert, seat_.expert));
    }
    put_stack(at + experts_ + "w13_weight", w13);
    put_stack(at + experts_ + "w2_weight", w2);
  }

  bool sglang_;
  std::string experts_;
  bool stored_head_;
  std::vector<std::vector<uint64_t>> stages_;
  Seat seat_;
};

}  // namespace

std::vector<std::vector<uint64_t>> inference_stages(const EngineCase& engine, uint64_t layers) {
  const uint64_t pp = engine.number("pp");
  if (pp > layers) throw DoesNotDivide{"a pipeline stage without layers"};
  std::vector<uint64_t> sizes(pp, layers / pp);
  const uint64_t more = layers % pp;
  for (uint64_t i = 0; i < more; ++i) {
    // SGLang favours the last stages, vLLM those before the last.
    ++sizes.at(engine.engine == "sglang" ? pp - 1 - i : pp - 2 - i);
  }
  return deal_layers(sizes, layers);
}

RankContents inference_contents(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank,
                                uint64_t ranks) {
  const uint64_t dp = engine.engine == "vllm" ? engine.number("dp") : 1;
  must_divide(ranks, engine.tp * engine.number("pp") * dp, "ranks over the engine's own");
  return Inference(engine, catalogue, rank).contents();
}

}  // namespace awex::test
