#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/layer_tensors.hpp"
#include "layout/megatron_pipeline.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// The options of a Megatron trainer; megatron.hpp says what they mean.
struct MegatronOptions {
  MegatronPipelineOptions pipeline;
  uint32_t tp = 1;
  uint32_t cp = 1;
  uint32_t ep = 1;
  uint32_t etp = 1;
  bool sequential_experts = false;
  bool local_spec = false;
  uint32_t pad_vocab = 128;
  bool pad_with_tp = true;

  /// Throws a request error for unknown keys and values.
  [[nodiscard]] static MegatronOptions read(const EngineSpec& spec);

  /// Throws a request error that names option and value when `ranks` or the model do not divide.
  void check(const Catalogue& catalogue, const std::vector<LayerTensors>& layers,
             uint32_t ranks) const;

  /// The spec that reads back to these options: tp and what differs from the defaults.
  [[nodiscard]] std::string describe() const;

  /// training/vocab_utils.py: rows of the embedding over all tensor parallel ranks.
  [[nodiscard]] uint64_t padded_vocab(uint64_t vocab) const;
};

}  // namespace awex
