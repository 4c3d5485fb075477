#include "model/catalogue.hpp"

#include <utility>

#include "base/checked.hpp"
#include "model/digest.hpp"
#include "model/families/family.hpp"
#include "model/families/tensor_lister.hpp"

namespace awex {

Catalogue::Catalogue(std::string model_name, ModelConfig config, std::vector<TensorInfo> tensors)
    : model_name_(std::move(model_name)), config_(std::move(config)), tensors_(std::move(tensors)) {
  index_.reserve(tensors_.size());
  for (const auto& tensor : tensors_) {
    const auto index = narrow<uint32_t>(index_.size());
    if (!index_.emplace(tensor.name, index).second) {
      throw request_error(
          fmt::format("model {} has tensor \"{}\" twice", model_name_, tensor.name));
    }
    const auto elements = checked_mul(tensor.rows, tensor.cols, tensor.name.c_str());
    elements_ = checked_add(elements_, elements, "the number of the model's elements");
    bytes_ =
        checked_add(bytes_, checked_mul(elements, element_bytes(tensor.dtype), tensor.name.c_str()),
                    "the number of the model's bytes");
  }
}

std::optional<uint32_t> Catalogue::find(std::string_view name) const {
  const auto at = index_.find(std::string(name));
  if (at == index_.end()) return std::nullopt;
  return at->second;
}

uint32_t Catalogue::index_of(std::string_view name) const {
  const auto index = find(name);
  if (!index) {
    throw request_error(fmt::format("model {} has no tensor \"{}\"", model_name_, name))
        .about_tensor(std::string(name));
  }
  return *index;
}

uint64_t Catalogue::fingerprint() const {
  uint64_t hash = tensors_.size();
  const auto add = [&hash](uint64_t value) { hash = mix64(hash ^ value) + value; };
  for (const auto& tensor : tensors_) {
    add(tensor_key(tensor.name));
    add(static_cast<uint64_t>(tensor.dtype));
    add(static_cast<uint64_t>(tensor.source_dtype()));
    add(tensor.scaling ? tensor.scaling->block : 0);
    add(tensor.rows);
    add(tensor.cols);
    add(tensor.is_vector ? 1 : 0);
    add(static_cast<uint64_t>(tensor.role));
  }
  return hash;
}

Catalogue make_catalogue(std::string model_name, const ModelConfig& config) {
  const Family& family = family_of(config);
  TensorLister list(config);
  list.matrix(TensorRole::kEmbedding, "model.embed_tokens", config.vocab, config.hidden);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    list.set_layer(layer);
    family.list_layer(list);
  }
  list.set_layer(std::nullopt);
  list.norm(TensorRole::kFinalNorm, "model.norm", config.hidden);
  if (!config.tied_embeddings) {
    list.matrix(TensorRole::kHead, "lm_head", config.vocab, config.hidden);
  }
  return {std::move(model_name), config, std::move(list).take()};
}

}  // namespace awex
