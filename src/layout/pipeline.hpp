#pragma once

#include <cstdint>
#include <vector>

#include "layout/box.hpp"

namespace awex {

/// A run of consecutive layers that one pipeline stage holds, with what stands before and after
/// them. With virtual stages a stage has several such chunks.
struct PipelineChunk {
  Range layers;             ///< Of the model; may be empty.
  bool embedding = false;   ///< The token embedding stands before the layers.
  bool final_norm = false;  ///< The norm after the model's last layer.
  bool head = false;        ///< The output layer, or the embedding's replica when they are tied.
};

/// Chunks by stage, each stage's in the model's order.
using Pipeline = std::vector<std::vector<PipelineChunk>>;

/// Deals runs of layers out to `stages`: first to every stage its first chunk, then to every stage
/// its second. `layers_of` holds the size of each run in the model's order, a multiple of `stages`
/// of them. The embedding is in the first run; final norm and head are in the last.
[[nodiscard]] Pipeline make_pipeline(const std::vector<uint64_t>& layers_of, uint32_t stages);

}  // namespace awex
