#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layout/pipeline.hpp"
#include "layout/spec.hpp"

namespace awex {

/// Megatron-core's options for spreading layers over pipeline stages.
struct MegatronPipelineOptions {
  uint32_t pp = 1;                     ///< Stages.
  uint32_t vpp = 1;                    ///< Chunks a stage.
  std::optional<uint32_t> first;       ///< Layers of the first stage, all its chunks together.
  std::optional<uint32_t> last;        ///< Layers of the last stage.
  bool account_for_embedding = false;  ///< The embedding takes the place of a layer.
  bool account_for_loss = false;       ///< The output layer does.
  /// Megatron's --pipeline-model-parallel-layout, for example "Et*3|(tt|)*2,t|L": E embedding, t
  /// layer, m multi-token prediction layer, L output layer, | between chunks. Stands for all other
  /// options but pp.
  std::optional<std::string> layout;

  /// Reads pp, vpp, first, last, account_for_embedding, account_for_loss and layout. Throws a
  /// request error for options that exclude each other. With a layout, vpp is what it makes.
  [[nodiscard]] static MegatronPipelineOptions read(const EngineSpec& spec);
};

/// Which layers each stage holds (core/transformer/transformer_block.py, get_num_layers_to_build,
/// and pipeline_parallel_layer_layout.py). Chunks are dealt out one to each stage in turn. Without
/// a layout stages hold equally many layers but for `first`, `last` and the places that embedding
/// and output layer take. A layer of a layout's "m" holds no canonical tensor; where there is one,
/// the final norm follows the last layer rather than the last stage. Throws a request error that
/// names option and value when `layers` cannot be spread so.
[[nodiscard]] Pipeline megatron_pipeline(const MegatronPipelineOptions& options, uint64_t layers);

}  // namespace awex
