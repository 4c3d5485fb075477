#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "model/catalogue.hpp"

namespace awex {

/// Where a model's weights come from: the files of a checkpoint, or values generated for a preset.
/// Const and safe to read from several threads at once.
class WeightSource {
 public:
  WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;
  WeightSource(WeightSource&&) = delete;
  WeightSource& operator=(WeightSource&&) = delete;
  virtual ~WeightSource() = default;

  [[nodiscard]] virtual const Catalogue& catalogue() const = 0;

  /// Writes elements [first, first + out.size() / element size) of a canonical tensor, in row-major
  /// order of its whole shape, in the catalogue's dtype, little endian.
  virtual void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const = 0;
};

/// Opens "DIR" (config.json and *.safetensors, single or sharded with index) or "preset:NAME".
/// `keep_layers` keeps the first N layers only (tensors of later layers are ignored). Everything is
/// validated before this returns; throws a request error otherwise.
[[nodiscard]] std::unique_ptr<WeightSource> open_model(const std::string& model,
                                                       std::optional<uint64_t> keep_layers);

}  // namespace awex
