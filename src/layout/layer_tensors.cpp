#include "layout/layer_tensors.hpp"

#include <algorithm>
#include <array>

#include "base/checked.hpp"

namespace awex {
namespace {

constexpr const char* kBug =
    "this is a bug in the model's family: please report it with the command line";

/// The tensors of one layer, or of none, by their roles, but for routed experts.
class ByRole {
 public:
  ByRole(const Catalogue& catalogue, std::optional<uint32_t> layer)
      : catalogue_(catalogue), layer_(layer) {
    indices_.fill(kAbsent);
  }

  void add(TensorRole role, uint32_t index) {
    uint32_t& place = indices_.at(static_cast<size_t>(role));
    if (place != kAbsent) refuse(role, "more than one");
    place = index;
  }

  [[nodiscard]] std::optional<uint32_t> find(TensorRole role) const {
    const uint32_t index = indices_.at(static_cast<size_t>(role));
    return index == kAbsent ? std::nullopt : std::optional(index);
  }

  [[nodiscard]] uint32_t index_of(TensorRole role) const {
    const auto index = find(role);
    if (!index) refuse(role, "no");
    return *index;
  }

  [[noreturn]] void refuse(TensorRole role, const char* what) const {
    throw runtime_error(fmt::format("the catalogue of {} has {} tensor of role {} in {}",
                                    catalogue_.model_name(), what, tensor_role_name(role),
                                    layer_ ? fmt::format("layer {}", *layer_) : "no layer"),
                        kBug);
  }

 private:
  static constexpr uint32_t kAbsent = ~0U;

  const Catalogue& catalogue_;
  std::optional<uint32_t> layer_;
  std::array<uint32_t, static_cast<size_t>(TensorRole::kScales) + 1> indices_{};
};

/// Sorts a catalogue's tensors by layer and role in one pass.
class Sorter {
 public:
  explicit Sorter(const Catalogue& catalogue)
      : catalogue_(catalogue), ends_(catalogue, std::nullopt) {
    for (uint32_t l = 0; l < catalogue.config().layers; ++l) layers_.emplace_back(catalogue, l);
    experts_.resize(layers_.size());
    for (uint32_t index = 0; index < catalogue.tensors().size(); ++index) add(index);
  }

  [[nodiscard]] ModelTensors all() const {
    ModelTensors model{.embedding = ends_.index_of(TensorRole::kEmbedding),
                       .final_norm = ends_.index_of(TensorRole::kFinalNorm),
                       .head = ends_.find(TensorRole::kHead),
                       .layers = {}};
    model.layers.reserve(layers_.size());
    for (size_t l = 0; l < layers_.size(); ++l) model.layers.push_back(layer(l));
    return model;
  }

 private:
  /// Routed experts of a layer, as far as they have been seen.
  struct Experts {
    MlpTensors first;
    uint32_t stride = 0;
    uint32_t matrices = 0;
  };

  void add(uint32_t index) {
    const TensorInfo& tensor = catalogue_.tensors()[index];
    if (tensor.role == TensorRole::kScales) return;
    if (tensor.expert) {
      add_expert(tensor, index);
    } else {
      (tensor.layer ? layers_.at(*tensor.layer) : ends_).add(tensor.role, index);
    }
  }

  /// Experts follow each other, each with gate, up and down, so that none has to be looked for.
  void add_expert(const TensorInfo& tensor, uint32_t index) {
    constexpr std::array kOrder{TensorRole::kExpertGate, TensorRole::kExpertUp,
                                TensorRole::kExpertDown};
    Experts& experts = experts_.at(tensor.layer.value());
    const uint32_t matrix = static_cast<uint32_t>(experts.matrices % kOrder.size());
    if (experts.matrices == 0) experts.first.gate = index;
    if (tensor.role != kOrder.at(matrix) || *tensor.expert != experts.matrices / kOrder.size() ||
        index != experts.first.gate + experts.matrices) {
      throw runtime_error(fmt::format("the catalogue of {} does not list the experts of layer {} "
                                      "in order: {}",
                                      catalogue_.model_name(), *tensor.layer, tensor.name),
                          kBug);
    }
    ++experts.matrices;
  }

  [[nodiscard]] LayerTensors layer(size_t index) const {
    const ByRole& roles = layers_[index];
    LayerTensors layer{.input_norm = roles.index_of(TensorRole::kInputNorm),
                       .post_attention_norm = roles.index_of(TensorRole::kPostAttentionNorm),
                       .o = roles.index_of(TensorRole::kO),
                       .o_bias = roles.find(TensorRole::kOBias),
                       .q_norm = roles.find(TensorRole::kQNorm),
                       .k_norm = roles.find(TensorRole::kKNorm)};
    if (roles.find(TensorRole::kKvDown)) {
      layer.latent = latent(roles);
    } else {
      layer.qkv = QkvTensors{roles.index_of(TensorRole::kQ), roles.index_of(TensorRole::kK),
                             roles.index_of(TensorRole::kV)};
    }
    if (roles.find(TensorRole::kQBias)) {
      layer.qkv_bias =
          QkvTensors{roles.index_of(TensorRole::kQBias), roles.index_of(TensorRole::kKBias),
                     roles.index_of(TensorRole::kVBias)};
    }
    if (roles.find(TensorRole::kRouter)) {
      layer.moe = moe(roles, experts_[index]);
    } else {
      layer.mlp = MlpTensors{roles.index_of(TensorRole::kGate), roles.index_of(TensorRole::kUp),
                             roles.index_of(TensorRole::kDown)};
    }
    return layer;
  }

  static LatentTensors latent(const ByRole& roles) {
    LatentTensors tensors{.q_down = roles.find(TensorRole::kQDown),
                          .q_up = roles.index_of(TensorRole::kQUp),
                          .kv_down = roles.index_of(TensorRole::kKvDown),
                          .kv_norm = roles.index_of(TensorRole::kKvDownNorm),
                          .kv_up = roles.index_of(TensorRole::kKvUp)};
    if (tensors.q_down) tensors.q_norm = roles.index_of(TensorRole::kQDownNorm);
    return tensors;
  }

  static MoeTensors moe(const ByRole& roles, const Experts& experts) {
    constexpr uint32_t kMatrices = 3;
    if (experts.matrices == 0 || experts.matrices % kMatrices != 0) {
      roles.refuse(TensorRole::kExpertDown, "no last");
    }
    const uint32_t gate = experts.first.gate;
    MoeTensors tensors{.router = roles.index_of(TensorRole::kRouter),
                       .router_bias = roles.find(TensorRole::kRouterBias),
                       .shared_gate = roles.find(TensorRole::kSharedExpertGate),
                       .experts = experts.matrices / kMatrices,
                       .first_expert = {gate, gate + 1, gate + 2}};
    if (roles.find(TensorRole::kSharedGate)) {
      tensors.shared =
          MlpTensors{roles.index_of(TensorRole::kSharedGate), roles.index_of(TensorRole::kSharedUp),
                     roles.index_of(TensorRole::kSharedDown)};
    }
    return tensors;
  }

  const Catalogue& catalogue_;
  ByRole ends_;
  std::vector<ByRole> layers_;
  std::vector<Experts> experts_;
};

}  // namespace

ModelTensors find_tensors(const Catalogue& catalogue) { return Sorter(catalogue).all(); }

}  // namespace awex
