#include "model/catalogue.hpp"

#include <utility>

#include "base/checked.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

/// Lists a model's tensors in the catalogue's order.
class Lister {
 public:
  explicit Lister(const ModelConfig& config) : config_(config) {}

  std::vector<TensorInfo> all() && {
    const auto& c = config_;
    matrix("model.embed_tokens.weight", c.vocab, c.hidden);
    for (uint64_t layer = 0; layer < c.layers; ++layer) {
      prefix_ = fmt::format("model.layers.{}.", layer);
      vector("input_layernorm.weight", c.hidden);
      c.is_mla() ? latent_attention() : grouped_attention();
      vector("post_attention_layernorm.weight", c.hidden);
      c.is_moe_layer(layer) ? experts() : mlp("mlp", c.intermediate);
    }
    prefix_.clear();
    vector("model.norm.weight", c.hidden);
    if (!c.tied_embeddings) matrix("lm_head.weight", c.vocab, c.hidden);
    return std::move(tensors_);
  }

 private:
  void matrix(const std::string& name, uint64_t rows, uint64_t cols) {
    tensors_.push_back({prefix_ + name, config_.dtype, rows, cols, false});
  }
  void vector(const std::string& name, uint64_t size) { vector(name, size, config_.dtype); }
  void vector(const std::string& name, uint64_t size, DType dtype) {
    tensors_.push_back({prefix_ + name, dtype, size, 1, true});
  }

  void projection(const std::string& name, uint64_t rows) {
    matrix("self_attn." + name + ".weight", rows, config_.hidden);
    if (config_.attention_bias) vector("self_attn." + name + ".bias", rows);
  }

  void grouped_attention() {
    const uint64_t q_rows = config_.heads * config_.head_dim;
    const uint64_t kv_rows = config_.kv_heads * config_.head_dim;
    projection("q_proj", q_rows);
    projection("k_proj", kv_rows);
    projection("v_proj", kv_rows);
    matrix("self_attn.o_proj.weight", config_.hidden, q_rows);
    if (config_.qk_norm) {
      vector("self_attn.q_norm.weight", config_.head_dim);
      vector("self_attn.k_norm.weight", config_.head_dim);
    }
  }

  void latent_attention() {
    const auto& c = config_;
    const uint64_t q_rows = c.heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
    if (c.q_lora_rank == 0) {
      matrix("self_attn.q_proj.weight", q_rows, c.hidden);
    } else {
      matrix("self_attn.q_a_proj.weight", c.q_lora_rank, c.hidden);
      vector("self_attn.q_a_layernorm.weight", c.q_lora_rank);
      matrix("self_attn.q_b_proj.weight", q_rows, c.q_lora_rank);
    }
    matrix("self_attn.kv_a_proj_with_mqa.weight", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden);
    vector("self_attn.kv_a_layernorm.weight", c.kv_lora_rank);
    matrix("self_attn.kv_b_proj.weight", c.heads * (c.qk_nope_head_dim + c.v_head_dim),
           c.kv_lora_rank);
    matrix("self_attn.o_proj.weight", c.hidden, c.heads * c.v_head_dim);
  }

  void mlp(const std::string& name, uint64_t intermediate) {
    matrix(name + ".gate_proj.weight", intermediate, config_.hidden);
    matrix(name + ".up_proj.weight", intermediate, config_.hidden);
    matrix(name + ".down_proj.weight", config_.hidden, intermediate);
  }

  void experts() {
    matrix("mlp.gate.weight", config_.experts, config_.hidden);
    if (config_.has_score_correction_bias) {
      vector("mlp.gate.e_score_correction_bias", config_.experts, DType::kF32);
    }
    for (uint64_t expert = 0; expert < config_.experts; ++expert) {
      mlp(fmt::format("mlp.experts.{}", expert), config_.moe_intermediate);
    }
    if (config_.shared_experts > 0) {
      mlp("mlp.shared_experts", config_.shared_experts * config_.moe_intermediate);
    }
  }

  const ModelConfig& config_;
  std::string prefix_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace

Catalogue::Catalogue(std::string model_name, ModelConfig config, std::vector<TensorInfo> tensors)
    : model_name_(std::move(model_name)), config_(std::move(config)), tensors_(std::move(tensors)) {
  index_.reserve(tensors_.size());
  for (const auto& tensor : tensors_) {
    const auto index = narrow<uint32_t>(index_.size());
    if (!index_.emplace(tensor.name, index).second) {
      throw request_error(
          fmt::format("model {} has tensor \"{}\" twice", model_name_, tensor.name));
    }
    const auto elements = checked_mul(tensor.rows, tensor.cols, tensor.name.c_str());
    elements_ = checked_add(elements_, elements, "the number of the model's elements");
    bytes_ =
        checked_add(bytes_, checked_mul(elements, element_bytes(tensor.dtype), tensor.name.c_str()),
                    "the number of the model's bytes");
  }
}

std::optional<uint32_t> Catalogue::find(std::string_view name) const {
  const auto at = index_.find(std::string(name));
  if (at == index_.end()) return std::nullopt;
  return at->second;
}

uint32_t Catalogue::index_of(std::string_view name) const {
  const auto index = find(name);
  if (!index) {
    throw request_error(fmt::format("model {} has no tensor \"{}\"", model_name_, name))
        .about_tensor(std::string(name));
  }
  return *index;
}

uint64_t Catalogue::fingerprint() const {
  uint64_t hash = tensors_.size();
  const auto add = [&hash](uint64_t value) { hash = mix64(hash ^ value) + value; };
  for (const auto& tensor : tensors_) {
    add(tensor_key(tensor.name));
    add(static_cast<uint64_t>(tensor.dtype));
    add(static_cast<uint64_t>(tensor.source_dtype()));
    add(tensor.scaling ? tensor.scaling->block : 0);
    add(tensor.rows);
    add(tensor.cols);
    add(tensor.is_vector ? 1 : 0);
  }
  return hash;
}

Catalogue make_catalogue(std::string model_name, const ModelConfig& config) {
  return {std::move(model_name), config, Lister(config).all()};
}

}  // namespace awex
