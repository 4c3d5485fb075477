#include "model/weights.hpp"

#include <algorithm>
#include <atomic>
#include <string_view>
#include <utility>

#include "base/checked.hpp"
#include "model/checkpoint.hpp"
#include "model/digest.hpp"
#include "model/generated_source.hpp"
#include "model/presets.hpp"
#include "model/safetensors.hpp"

namespace awex {
namespace {

constexpr uint64_t kChunkBytes = 4U << 20;
constexpr std::string_view kPresetPrefix = "preset:";

Catalogue preset_catalogue(const std::string& name, std::optional<uint64_t> keep_layers) {
  auto config = preset_config(name);
  if (keep_layers) config = keep_first_layers(std::move(config), *keep_layers, name);
  return make_catalogue(name, config);
}

}  // namespace

ModelName::ModelName(std::string text) : name_(std::move(text)) {
  is_preset_ = name_.starts_with(kPresetPrefix);
  if (is_preset_) name_.erase(0, kPresetPrefix.size());
}

uint64_t WeightSource::bytes_to_read(uint32_t tensor, uint64_t /*first*/, uint64_t elements) const {
  return elements * element_bytes(catalogue().tensors().at(tensor).dtype);
}

const std::vector<SafetensorsFile>& WeightSource::files() const {
  static const std::vector<SafetensorsFile> none;
  return none;
}

std::unique_ptr<WeightSource> open_model(const ModelName& model,
                                         std::optional<uint64_t> keep_layers) {
  if (!model.is_preset()) return open_checkpoint(model.name(), keep_layers);
  return generate_weights(preset_catalogue(model.name(), keep_layers));
}

ModelShape read_model_shape(const ModelName& model, std::optional<uint64_t> keep_layers) {
  if (model.is_preset()) return {preset_catalogue(model.name(), keep_layers), {}};
  std::vector<std::string> remarks;
  auto catalogue = checkpoint_catalogue(model.name(), keep_layers, remarks);
  return {std::move(catalogue), std::move(remarks)};
}

void check_range(const TensorInfo& tensor, uint64_t first, uint64_t bytes) {
  const auto element_size = element_bytes(tensor.dtype);
  const auto elements = tensor.elements();
  if (bytes % element_size == 0 && first <= elements && bytes / element_size <= elements - first) {
    return;
  }
  throw runtime_error(fmt::format("cannot read {} bytes from element {} on of tensor \"{}\", which "
                                  "has {} elements of {} bytes",
                                  bytes, first, tensor.name, elements, element_size))
      .about_tensor(tensor.name);
}

void for_each_chunk(const WeightSource& source, uint32_t first_tensor, uint32_t count,
                    ThreadPool& pool, const std::function<void(const WeightChunk&)>& work) {
  struct Piece {
    uint32_t tensor;
    uint64_t first;
    uint64_t bytes;
  };
  std::vector<Piece> pieces;
  for (uint32_t tensor = first_tensor; tensor < first_tensor + count; ++tensor) {
    const auto& info = source.catalogue().tensors().at(tensor);
    for (uint64_t at = 0; at < info.bytes(); at += kChunkBytes) {
      pieces.push_back(
          {tensor, at / element_bytes(info.dtype), std::min(kChunkBytes, info.bytes() - at)});
    }
  }
  pool.for_each(pieces.size(), [&](size_t i) {
    const auto& piece = pieces[i];
    const auto buffer = std::make_unique_for_overwrite<std::byte[]>(piece.bytes);
    const std::span bytes(buffer.get(), piece.bytes);
    source.read(piece.tensor, piece.first, bytes);
    work({piece.tensor, piece.first, bytes});
  });
}

std::vector<uint64_t> digest_source(const WeightSource& source, ThreadPool& pool) {
  const auto& tensors = source.catalogue().tensors();
  std::vector<std::atomic<uint64_t>> sums(tensors.size());
  for_each_chunk(source, 0, narrow<uint32_t>(tensors.size()), pool, [&](const WeightChunk& chunk) {
    const auto& info = tensors[chunk.tensor];
    sums[chunk.tensor] +=
        digest_elements(tensor_key(info.name), element_bytes(info.dtype), chunk.first, chunk.bytes);
  });
  return {sums.begin(), sums.end()};
}

uint64_t model_digest(const Catalogue& catalogue, std::span<const uint64_t> tensor_digests) {
  const auto& tensors = catalogue.tensors();
  if (tensor_digests.size() != tensors.size()) {
    throw runtime_error(fmt::format("{} digests for the {} tensors of {}", tensor_digests.size(),
                                    tensors.size(), catalogue.model_name()));
  }
  uint64_t digest = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    digest += model_digest_term(tensor_key(tensors[i].name), tensor_digests[i]);
  }
  return digest;
}

}  // namespace awex
