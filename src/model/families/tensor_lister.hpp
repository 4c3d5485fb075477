#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/catalogue.hpp"

namespace awex {

/// Lists a model's tensors in the catalogue's order. Names within a layer are what stands behind
/// "model.layers.N.". Refers to the config.
class TensorLister {
 public:
  explicit TensorLister(const ModelConfig& config) : config_(config) {}

  [[nodiscard]] const ModelConfig& config() const { return config_; }

  /// What follows is of this layer, or of none.
  void set_layer(std::optional<uint32_t> layer);
  /// Whether the layer has experts.
  [[nodiscard]] bool is_moe_layer() const { return config_.is_moe_layer(layer_.value()); }

  /// Adds "<name>.weight" of rows x cols. `expert` is that of a routed expert's matrix.
  void matrix(TensorRole role, std::string_view name, uint64_t rows, uint64_t cols,
              std::optional<uint32_t> expert = std::nullopt);
  /// Adds "<name>.weight" of `size` elements.
  void norm(TensorRole role, std::string_view name, uint64_t size);
  /// Adds a vector under its whole name, in the model's dtype or another.
  void vector(TensorRole role, std::string_view name, uint64_t size,
              std::optional<DType> dtype = std::nullopt);

  [[nodiscard]] std::vector<TensorInfo> take() && { return std::move(tensors_); }

 private:
  const ModelConfig& config_;
  std::optional<uint32_t> layer_;
  std::string prefix_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace awex
