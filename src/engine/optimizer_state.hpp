#pragma once

#include <cstdint>
#include <vector>

#include "layout/layout.hpp"

namespace awex {

/// Where the state of an AdamW optimizer lies for the weights of a rank: three fp32 arrays (master
/// weights and two moments), one after the other, each with an element for every element of the
/// rank's parameters, in their order; a parameter's begins at a multiple of kParameterAlignment.
class OptimizerState {
 public:
  explicit OptimizerState(const RankLayout& layout);

  /// Of all three arrays.
  [[nodiscard]] uint64_t bytes() const;
  /// Of what a rank's shards initialise; the rest pads parameters.
  [[nodiscard]] static uint64_t initialised_bytes(const RankLayout& layout);
  /// Elements of one array.
  [[nodiscard]] uint64_t array_elements() const { return starts_.back(); }
  /// Where a parameter's state begins in each array, in elements.
  [[nodiscard]] uint64_t start(uint32_t parameter) const { return starts_[parameter]; }
  /// The state as tensors: "exp_avg of NAME" and the like.
  [[nodiscard]] std::vector<Parameter> tensors(const RankLayout& layout) const;

 private:
  std::vector<uint64_t> starts_;  ///< By parameter, and the end.
};

}  // namespace awex
