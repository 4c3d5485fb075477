#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/config.hpp"
#include "model/dtype.hpp"
#include "model/tensor_role.hpp"

namespace awex {

/// How a quantised tensor is scaled: each block of `block` x `block` elements has one fp32 scale,
/// the element of another tensor, of [ceil(rows / block), ceil(cols / block)]. Blocks at the end of
/// a row or column may be smaller.
struct BlockScaling {
  uint32_t scales = 0;  ///< Index of the scales' tensor in the catalogue.
  uint32_t block = 0;   ///< Elements.

  constexpr bool operator==(const BlockScaling&) const = default;
};

/// A canonical tensor: Hugging Face name and shape. Every tensor is a matrix of rows x cols; a
/// vector of n elements is n rows of one column, so that dimension 0 is always `rows`.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kBf16;
  uint64_t rows = 0;
  uint64_t cols = 0;
  bool is_vector = false;  ///< Its shape in files is [rows], not [rows, cols].
  /// The dtype of the trainer, where the one that inference holds (`dtype`) is another.
  std::optional<DType> trainer_dtype{};
  std::optional<BlockScaling> scaling{};  ///< Of a quantised tensor.
  TensorRole role = TensorRole::kNone;
  std::optional<uint32_t> layer{};   ///< Of a layer's tensor.
  std::optional<uint32_t> expert{};  ///< Of a routed expert's.

  [[nodiscard]] DType source_dtype() const { return trainer_dtype.value_or(dtype); }
  [[nodiscard]] uint64_t elements() const { return rows * cols; }
  [[nodiscard]] uint64_t bytes() const { return elements() * element_bytes(dtype); }
};

/// All canonical tensors of a model, in the order embedding, layers, final norm, lm_head. A
/// tensor's index in `tensors()` is its identity throughout the product.
class Catalogue {
 public:
  Catalogue(std::string model_name, ModelConfig config, std::vector<TensorInfo> tensors);

  [[nodiscard]] const std::string& model_name() const { return model_name_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const { return tensors_; }
  [[nodiscard]] uint64_t elements() const { return elements_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::optional<uint32_t> find(std::string_view name) const;
  /// The index of a tensor that must exist; throws a request error that names it otherwise.
  [[nodiscard]] uint32_t index_of(std::string_view name) const;
  /// 64-bit hash of model name-independent content: every tensor's name, dtypes, shape, block
  /// and role.
  [[nodiscard]] uint64_t fingerprint() const;

 private:
  std::string model_name_;
  ModelConfig config_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, uint32_t> index_;
  uint64_t elements_ = 0;
  uint64_t bytes_ = 0;
};

/// The canonical tensors of a config, named and shaped as transformers saves them; its family's
/// file (model/families) lists a layer's. All tensors have config.dtype, except that routers'
/// biases are fp32. MTP layers are left out.
[[nodiscard]] Catalogue make_catalogue(std::string model_name, const ModelConfig& config);

}  // namespace awex
