#include "support/oracle.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace awex::test {
namespace {

uint64_t divide(uint64_t whole, uint64_t parts, const std::string& what) {
  if (parts == 0 || whole % parts != 0) {
    throw DoesNotDivide{fmt::format("{}: {} by {}", what, whole, parts)};
  }
  return whole / parts;
}

uint64_t padded_to(uint64_t value, uint64_t step) {
  while (value % step != 0) ++value;
  return value;
}

bool has_experts(const ModelConfig& config, uint64_t layer) {
  return config.experts > 0 && config.mlp_only_layers.count(layer) == 0 &&
         (layer + 1) % config.decoder_sparse_step == 0;
}

IdMatrix rows_of(const IdMatrix& m, uint64_t first, uint64_t count) {
  IdMatrix out{count, m.cols, {}};
  for (uint64_t r = first; r < first + count; ++r) {
    for (uint64_t c = 0; c < m.cols; ++c) out.ids.push_back(m.ids.at(r * m.cols + c));
  }
  return out;
}

IdMatrix cols_of(const IdMatrix& m, uint64_t first, uint64_t count) {
  IdMatrix out{m.rows, count, {}};
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t c = first; c < first + count; ++c) out.ids.push_back(m.ids.at(r * m.cols + c));
  }
  return out;
}

IdMatrix stack(const std::vector<IdMatrix>& parts) {
  IdMatrix out{0, parts.at(0).cols, {}};
  for (const IdMatrix& part : parts) {
    if (part.cols != out.cols) throw std::logic_error("oracle: stacked matrices differ in columns");
    out.rows += part.rows;
    out.ids.insert(out.ids.end(), part.ids.begin(), part.ids.end());
  }
  return out;
}

IdMatrix pad_rows(IdMatrix m, uint64_t rows) {
  while (m.rows < rows) {
    m.ids.insert(m.ids.end(), m.cols, kPadding);
    ++m.rows;
  }
  return m;
}

IdMatrix row_part(const IdMatrix& m, uint64_t parts, uint64_t part, const std::string& what) {
  const uint64_t rows = divide(m.rows, parts, what);
  return rows_of(m, part * rows, rows);
}

IdMatrix col_part(const IdMatrix& m, uint64_t parts, uint64_t part, const std::string& what) {
  const uint64_t cols = divide(m.cols, parts, what);
  return cols_of(m, part * cols, cols);
}

/// Builds one rank's contents, parameter by parameter.
class Writer {
 public:
  Writer(const Catalogue& catalogue, uint64_t tp, uint64_t rank)
      : catalogue_(catalogue), config_(catalogue.config()), tp_(tp), r_(rank % tp) {}

  RankContents hf();
  RankContents megatron();
  RankContents sglang();

 private:
  [[nodiscard]] IdMatrix canonical(const std::string& name) const {
    const uint32_t tensor = catalogue_.find(name).value();
    const TensorInfo& info = catalogue_.tensors().at(tensor);
    IdMatrix m{info.rows, info.cols, {}};
    for (uint64_t i = 0; i < info.rows * info.cols; ++i) m.ids.push_back(identity_of(tensor, i));
    return m;
  }
  void put(const std::string& name, IdMatrix m) {
    if (!out_.emplace(name, std::move(m)).second) throw std::logic_error("oracle: twice " + name);
  }
  /// gate's part above up's part.
  [[nodiscard]] IdMatrix gate_up(const std::string& mlp) const {
    return stack({row_part(canonical(mlp + "gate_proj.weight"), tp_, r_, "gate_proj rows"),
                  row_part(canonical(mlp + "up_proj.weight"), tp_, r_, "up_proj rows")});
  }
  [[nodiscard]] IdMatrix down(const std::string& mlp) const {
    return col_part(canonical(mlp + "down_proj.weight"), tp_, r_, "down_proj columns");
  }

  [[nodiscard]] IdMatrix interleaved_qkv(const std::string& attention,
                                         const std::string& kind) const;
  void megatron_layer(uint64_t layer);
  [[nodiscard]] IdMatrix sglang_qkv(const std::string& attention, const std::string& kind) const;
  void sglang_layer(uint64_t layer);

  const Catalogue& catalogue_;
  const ModelConfig& config_;
  uint64_t tp_;
  uint64_t r_;
  RankContents out_;
};

RankContents Writer::hf() {
  for (const TensorInfo& tensor : catalogue_.tensors()) put(tensor.name, canonical(tensor.name));
  return std::move(out_);
}

/// The whole fused tensor: for each KV head its query heads, then its key, then its value.
IdMatrix Writer::interleaved_qkv(const std::string& attention, const std::string& kind) const {
  const IdMatrix q = canonical(attention + "q_proj." + kind);
  const IdMatrix k = canonical(attention + "k_proj." + kind);
  const IdMatrix v = canonical(attention + "v_proj." + kind);
  const uint64_t d = config_.head_dim;
  const uint64_t queries = divide(config_.heads, config_.kv_heads, "query heads a KV head");
  std::vector<IdMatrix> parts;
  for (uint64_t group = 0; group < config_.kv_heads; ++group) {
    for (uint64_t i = 0; i < queries; ++i)
      parts.push_back(rows_of(q, (group * queries + i) * d, d));
    parts.push_back(rows_of(k, group * d, d));
    parts.push_back(rows_of(v, group * d, d));
  }
  return stack(parts);
}

void Writer::megatron_layer(uint64_t layer) {
  const std::string from = fmt::format("model.layers.{}.", layer);
  const std::string to = fmt::format("decoder.layers.{}.", layer);
  divide(config_.heads, tp_, "attention heads");
  put(to + "self_attention.linear_qkv.layer_norm_weight",
      canonical(from + "input_layernorm.weight"));
  put(to + "self_attention.linear_qkv.weight",
      row_part(interleaved_qkv(from + "self_attn.", "weight"), tp_, r_, "qkv rows"));
  if (config_.attention_bias) {
    put(to + "self_attention.linear_qkv.bias",
        row_part(interleaved_qkv(from + "self_attn.", "bias"), tp_, r_, "qkv bias"));
  }
  if (config_.qk_norm) {
    put(to + "self_attention.q_layernorm.weight", canonical(from + "self_attn.q_norm.weight"));
    put(to + "self_attention.k_layernorm.weight", canonical(from + "self_attn.k_norm.weight"));
  }
  put(to + "self_attention.linear_proj.weight",
      col_part(canonical(from + "self_attn.o_proj.weight"), tp_, r_, "o_proj columns"));
  const IdMatrix norm = canonical(from + "post_attention_layernorm.weight");
  if (!has_experts(config_, layer)) {
    put(to + "mlp.linear_fc1.layer_norm_weight", norm);
    put(to + "mlp.linear_fc1.weight", gate_up(from + "mlp."));
    put(to + "mlp.linear_fc2.weight", down(from + "mlp."));
    return;
  }
  put(to + "pre_mlp_layernorm.weight", norm);
  put(to + "mlp.router.weight", canonical(from + "mlp.gate.weight"));
  for (uint64_t e = 0; e < config_.experts; ++e) {
    const std::string expert = fmt::format("{}mlp.experts.{}.", from, e);
    put(fmt::format("{}mlp.experts.linear_fc1.weight{}", to, e), gate_up(expert));
    put(fmt::format("{}mlp.experts.linear_fc2.weight{}", to, e), down(expert));
  }
}

RankContents Writer::megatron() {
  const uint64_t vocab = padded_to(config_.vocab, 128 * tp_);
  put("embedding.word_embeddings.weight",
      row_part(pad_rows(canonical("model.embed_tokens.weight"), vocab), tp_, r_, "vocabulary"));
  for (uint64_t layer = 0; layer < config_.layers; ++layer) megatron_layer(layer);
  put("decoder.final_layernorm.weight", canonical("model.norm.weight"));
  if (!config_.tied_embeddings) {
    put("output_layer.weight",
        row_part(pad_rows(canonical("lm_head.weight"), vocab), tp_, r_, "vocabulary"));
  }
  return std::move(out_);
}

IdMatrix Writer::sglang_qkv(const std::string& attention, const std::string& kind) const {
  const uint64_t kv = config_.kv_heads;
  divide(config_.heads, tp_, "attention heads");
  // With more ranks than KV heads, neighbouring ranks hold the same one.
  const uint64_t blocks = tp_ >= kv ? kv : tp_;
  divide(kv, blocks, "KV heads");
  const uint64_t block = r_ / divide(tp_, blocks, "ranks a KV head");
  return stack({row_part(canonical(attention + "q_proj." + kind), tp_, r_, "q rows"),
                row_part(canonical(attention + "k_proj." + kind), blocks, block, "k rows"),
                row_part(canonical(attention + "v_proj." + kind), blocks, block, "v rows")});
}

void Writer::sglang_layer(uint64_t layer) {
  const std::string at = fmt::format("model.layers.{}.", layer);
  for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
    put(at + norm, canonical(at + norm));
  }
  put(at + "self_attn.qkv_proj.weight", sglang_qkv(at + "self_attn.", "weight"));
  if (config_.attention_bias) {
    put(at + "self_attn.qkv_proj.bias", sglang_qkv(at + "self_attn.", "bias"));
  }
  if (config_.qk_norm) {
    for (const char* norm : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
      put(at + norm, canonical(at + norm));
    }
  }
  put(at + "self_attn.o_proj.weight",
      col_part(canonical(at + "self_attn.o_proj.weight"), tp_, r_, "o_proj columns"));
  if (!has_experts(config_, layer)) {
    put(at + "mlp.gate_up_proj.weight", gate_up(at + "mlp."));
    put(at + "mlp.down_proj.weight", down(at + "mlp."));
    return;
  }
  put(at + "mlp.gate.weight", canonical(at + "mlp.gate.weight"));
  std::vector<IdMatrix> w13;
  std::vector<IdMatrix> w2;
  for (uint64_t e = 0; e < config_.experts; ++e) {
    const std::string expert = fmt::format("{}mlp.experts.{}.", at, e);
    w13.push_back(gate_up(expert));
    w2.push_back(down(expert));
  }
  put(at + "mlp.experts.w13_weight", stack(w13));
  put(at + "mlp.experts.w2_weight", stack(w2));
}

RankContents Writer::sglang() {
  const uint64_t vocab = padded_to(config_.vocab, 64);
  const auto vocabulary_part = [&](const std::string& name) {
    return row_part(pad_rows(canonical(name), vocab), tp_, r_, "vocabulary");
  };
  put("model.embed_tokens.weight", vocabulary_part("model.embed_tokens.weight"));
  for (uint64_t layer = 0; layer < config_.layers; ++layer) sglang_layer(layer);
  put("model.norm.weight", canonical("model.norm.weight"));
  if (!config_.tied_embeddings) put("lm_head.weight", vocabulary_part("lm_head.weight"));
  return std::move(out_);
}

void add_layer(std::map<std::string, std::pair<uint64_t, uint64_t>>& out, const ModelConfig& config,
               uint64_t layer) {
  const uint64_t hidden = config.hidden;
  const uint64_t q = config.heads * config.head_dim;
  const uint64_t kv = config.kv_heads * config.head_dim;
  const std::string at = fmt::format("model.layers.{}.", layer);
  out[at + "input_layernorm.weight"] = {hidden, 1};
  out[at + "post_attention_layernorm.weight"] = {hidden, 1};
  for (const auto& [name, rows] : {std::pair{"q", q}, std::pair{"k", kv}, std::pair{"v", kv}}) {
    out[fmt::format("{}self_attn.{}_proj.weight", at, name)] = {rows, hidden};
    if (config.attention_bias) out[fmt::format("{}self_attn.{}_proj.bias", at, name)] = {rows, 1};
  }
  out[at + "self_attn.o_proj.weight"] = {hidden, q};
  if (config.qk_norm) {
    out[at + "self_attn.q_norm.weight"] = {config.head_dim, 1};
    out[at + "self_attn.k_norm.weight"] = {config.head_dim, 1};
  }
  const auto add_mlp = [&](const std::string& mlp, uint64_t intermediate) {
    out[mlp + "gate_proj.weight"] = {intermediate, hidden};
    out[mlp + "up_proj.weight"] = {intermediate, hidden};
    out[mlp + "down_proj.weight"] = {hidden, intermediate};
  };
  if (!has_experts(config, layer)) {
    add_mlp(at + "mlp.", config.intermediate);
    return;
  }
  out[at + "mlp.gate.weight"] = {config.experts, hidden};
  for (uint64_t e = 0; e < config.experts; ++e) {
    add_mlp(fmt::format("{}mlp.experts.{}.", at, e), config.moe_intermediate);
  }
}

}  // namespace

std::string describe_identity(const Catalogue& catalogue, Identity id) {
  if (id == kPadding) return "padding";
  const TensorInfo& tensor = catalogue.tensors().at(tensor_of(id));
  return fmt::format("{}[{}, {}]", tensor.name, index_of(id) / tensor.cols,
                     index_of(id) % tensor.cols);
}

std::string EngineCase::spec() const {
  return engine == "hf" ? engine : fmt::format("{}:tp={}", engine, tp);
}

std::map<std::string, std::pair<uint64_t, uint64_t>> expected_tensors(const ModelConfig& config) {
  std::map<std::string, std::pair<uint64_t, uint64_t>> out;
  out["model.embed_tokens.weight"] = {config.vocab, config.hidden};
  for (uint64_t layer = 0; layer < config.layers; ++layer) add_layer(out, config, layer);
  out["model.norm.weight"] = {config.hidden, 1};
  if (!config.tied_embeddings) out["lm_head.weight"] = {config.vocab, config.hidden};
  return out;
}

RankContents expected_contents(const EngineCase& engine, const Catalogue& catalogue,
                               uint32_t rank) {
  Writer writer(catalogue, engine.tp, rank);
  if (engine.engine == "hf") return writer.hf();
  if (engine.engine == "megatron") return writer.megatron();
  if (engine.engine == "sglang") return writer.sglang();
  throw std::logic_error("oracle: no engine " + engine.engine);
}

std::vector<Identity> expected_region(const RankContents& contents, const RankLayout& layout,
                                      const Catalogue& catalogue) {
  const uint64_t size = element_bytes(catalogue.config().dtype);
  std::vector<Identity> region(layout.bytes / size, kPadding);
  for (const Parameter& parameter : layout.parameters) {
    const IdMatrix& content = contents.at(parameter.name);
    for (uint64_t i = 0; i < content.ids.size(); ++i) {
      region.at(parameter.offset_bytes / size + i) = content.ids[i];
    }
  }
  return region;
}

}  // namespace awex::test
