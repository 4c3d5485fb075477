#include "model/families/tensor_lister.hpp"

#include <fmt/format.h>

namespace awex {

void TensorLister::set_layer(std::optional<uint32_t> layer) {
  layer_ = layer;
  prefix_ = layer ? fmt::format("model.layers.{}.", *layer) : "";
}

void TensorLister::matrix(TensorRole role, std::string_view name, uint64_t rows, uint64_t cols,
                          std::optional<uint32_t> expert) {
  tensors_.push_back({.name = fmt::format("{}{}.weight", prefix_, name),
                      .dtype = config_.dtype,
                      .rows = rows,
                      .cols = cols,
                      .role = role,
                      .layer = layer_,
                      .expert = expert});
}

void TensorLister::norm(TensorRole role, std::string_view name, uint64_t size) {
  vector(role, fmt::format("{}.weight", name), size);
}

void TensorLister::vector(TensorRole role, std::string_view name, uint64_t size,
                          std::optional<DType> dtype) {
  tensors_.push_back({.name = fmt::format("{}{}", prefix_, name),
                      .dtype = dtype.value_or(config_.dtype),
                      .rows = size,
                      .cols = 1,
                      .is_vector = true,
                      .role = role,
                      .layer = layer_});
}

}  // namespace awex
