#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "model/dtype.hpp"

namespace awex {

/// What the product needs of a Hugging Face config.json. Sizes are in elements.
struct ModelConfig {
  /// Its model_type, which names the file of model/families that says what it is. Kimi-K2 is
  /// "deepseek_v3", the same class of transformers.
  std::string family = "llama";
  DType dtype = DType::kBf16;
  uint64_t layers = 0;
  uint64_t hidden = 0;
  uint64_t heads = 0;
  uint64_t kv_heads = 0;  ///< With MLA there is one a query head.
  uint64_t head_dim = 0;  ///< May differ from hidden / heads (Qwen3). 0 with MLA.
  uint64_t intermediate = 0;
  uint64_t vocab = 0;
  bool tied_embeddings = false;
  bool attention_bias = false;      ///< q, k and v have a bias.
  bool attention_out_bias = false;  ///< o has one.
  bool qk_norm = false;             ///< q_norm and k_norm over head_dim.

  /// @name Multi-head latent attention (MLA), 0 without it. Of a head, q and k are the nope part,
  /// then the rope part; in kv_b_proj a head is the nope part of k, then v.
  /// @{
  uint64_t q_lora_rank = 0;  ///< 0 also where q is projected at once, by q_proj.
  uint64_t kv_lora_rank = 0;
  uint64_t qk_nope_head_dim = 0;
  uint64_t qk_rope_head_dim = 0;
  uint64_t v_head_dim = 0;
  /// @}

  uint64_t experts = 0;  ///< Routed ones; 0 for a dense model.
  uint64_t moe_intermediate = 0;
  uint64_t experts_per_token = 0;
  uint64_t shared_experts = 0;             ///< They are one MLP of shared_width() rows.
  uint64_t shared_intermediate = 0;        ///< Of that MLP, where it is not so many experts' width.
  bool has_shared_expert_gate = false;     ///< shared_expert_gate weighs that MLP for each token.
  bool has_score_correction_bias = false;  ///< The router has e_score_correction_bias, in fp32.
  uint64_t first_k_dense_replace = 0;      ///< Layers before this one have no experts.
  uint64_t decoder_sparse_step = 1;
  std::set<uint64_t> mlp_only_layers;

  /// Layers for multi-token prediction (MTP) that a checkpoint holds behind the others, with
  /// indices from `layers` on. They are no part of the catalogue: they only draft tokens for
  /// speculative decoding, and no engine here holds them.
  uint64_t mtp_layers = 0;

  /// Whether attention is MLA.
  [[nodiscard]] bool is_mla() const { return kv_lora_rank > 0; }

  /// Rows of the MLP that shared experts are.
  [[nodiscard]] uint64_t shared_width() const {
    return shared_intermediate > 0 ? shared_intermediate : shared_experts * moe_intermediate;
  }

  /// Whether layer `layer` has experts: `experts` > 0, the layer is neither among the first
  /// first_k_dense_replace (modeling_deepseek_v3.py, modeling_glm4_moe.py) nor in mlp_only_layers,
  /// and layer + 1 is a multiple of decoder_sparse_step (modeling_qwen3_moe.py, all transformers).
  [[nodiscard]] bool is_moe_layer(uint64_t layer) const;

  bool operator==(const ModelConfig&) const = default;
};

/// A field that a config.json leaves out, and what transformers takes then.
struct AssumedField {
  std::string name;
  std::string value;
};

/// A whole config.json: the model, and what it says about how files store the weights.
struct CheckpointConfig {
  ModelConfig model;  ///< Its dtype is bfloat16 where the file names none.
  bool names_dtype =
      false;            ///< Whether the file does; fp8 is how weights are stored, no dtype here.
  bool is_fp8 = false;  ///< Whether it says that weights are fp8 with a scale for each block.
  uint64_t block_rows = 128;  ///< Rows of such a block (weight_block_size), and of fp8 files whose
  uint64_t block_cols = 128;  ///< config.json says nothing of it.
  std::vector<AssumedField> assumed;  ///< In the order in which they were asked for.

  /// "config.json leaves out "a" (taken as 1)", for hints; empty if it leaves out nothing.
  [[nodiscard]] std::string assumptions() const;
};

/// Reads a config.json's text, with the field names of transformers 4 and 5. Throws a request error
/// that names the field, its value and the file for missing, absurd or contradicting fields, for
/// architectures that are no family of model/families, and for quantisations other than fp8 (e4m3)
/// in blocks. What passes has fewer than 2^56 elements in at most a million tensors, so later sums
/// do not overflow.
[[nodiscard]] CheckpointConfig parse_checkpoint_config(std::string_view json_text,
                                                       const std::string& file);

/// The model of parse_checkpoint_config alone.
[[nodiscard]] ModelConfig parse_config(std::string_view json_text, const std::string& file);

/// The config.json text that parse_config reads back to the same config.
[[nodiscard]] std::string config_to_json(const ModelConfig& config);

/// The config with its first `layers` layers only, thus without MTP layers. Throws a request error
/// that names `model` unless 1 <= layers <= config.layers.
[[nodiscard]] ModelConfig keep_first_layers(ModelConfig config, uint64_t layers,
                                            const std::string& model);

}  // namespace awex
