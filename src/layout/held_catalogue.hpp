#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout/spec.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// In which dtypes an inference engine holds a model (layouts.md section 7): the receiver's rules.
/// Options of a spec:
///   dtype         bf16, fp16, fp32 or fp8 (e4m3) instead of the model's own. fp8 is for attention
///                 projections and MLPs, in blocks that share a scale; the rest keeps its dtype
///   router_dtype  bf16, fp16 or fp32 for the routers' weights (mlp.gate.weight). Unless given,
///                 fp32 where the engine's own class of the model says so: GLM-4.5 and
///                 GLM-4.7-Flash in sglang and vllm
///   block         with fp8: rows and columns of a block; 128 unless given
/// A router's e_score_correction_bias is fp32 whatever they say.
struct DTypeRules {
  std::optional<DType> main{};    ///< Unless it is the model's own.
  std::optional<DType> router{};  ///< Unless it is what `main` makes of it.
  uint32_t block = 0;             ///< 0 unless `main` is fp8.
  bool says_router = false;       ///< `router` is not what the engine has by default.

  /// The options of a spec, of which `block` stands for 128 where it is left out. Throws a request
  /// error for values that are no dtypes, and for a block without fp8.
  [[nodiscard]] static DTypeRules read(const EngineSpec& spec, const ModelConfig& config);
  /// The dtype in which inference holds a tensor of the model.
  [[nodiscard]] DType dtype_of(const TensorInfo& tensor) const;
  /// ",dtype=fp8,block=64": what a spec says after its other options; empty without rules.
  [[nodiscard]] std::string text() const;
};

/// What an inference engine holds: the model's tensors with the same indices, in the dtypes that
/// the spec's rules give, and behind them the scales of the quantised ones: "<tensor>_scale_inv",
/// fp32, in the same order. Scales are ordinary tensors for planning, moving and digests. Without
/// rules it is the model's own catalogue. Throws a request error when the rules make no sense;
/// the spec's other options are make_inference_layout's.
[[nodiscard]] Catalogue held_catalogue(const EngineSpec& inference, const Catalogue& model);

/// How many tensors of a held catalogue are the model's own: the indices before the scales'.
[[nodiscard]] uint32_t model_tensors(const Catalogue& held);

/// Throws a run-time error unless `held` has the dtypes that the rules give.
void check_held(const DTypeRules& rules, const Catalogue& held);

}  // namespace awex
