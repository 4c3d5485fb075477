#include "layout/layer_tensors.hpp"

#include "base/checked.hpp"

namespace awex {
namespace {

/// Finds the tensors of one layer.
class LayerFinder {
 public:
  LayerFinder(const Catalogue& catalogue, uint64_t layer)
      : catalogue_(catalogue), prefix_(fmt::format("model.layers.{}.", layer)) {}

  [[nodiscard]] LayerTensors all() const {
    LayerTensors layer{.input_norm = index("input_layernorm.weight"),
                       .post_attention_norm = index("post_attention_layernorm.weight"),
                       .o = index("self_attn.o_proj.weight"),
                       .q_norm = find("self_attn.q_norm.weight"),
                       .k_norm = find("self_attn.k_norm.weight")};
    if (find("self_attn.kv_a_proj_with_mqa.weight")) {
      layer.latent = latent();
    } else {
      layer.qkv = qkv("weight");
      if (find("self_attn.q_proj.bias")) layer.qkv_bias = qkv("bias");
    }
    if (find("mlp.gate.weight")) {
      layer.moe = moe();
    } else {
      layer.mlp = mlp("mlp");
    }
    return layer;
  }

 private:
  [[nodiscard]] std::optional<uint32_t> find(const std::string& name) const {
    return catalogue_.find(prefix_ + name);
  }
  [[nodiscard]] uint32_t index(const std::string& name) const {
    return catalogue_.index_of(prefix_ + name);
  }

  [[nodiscard]] QkvTensors qkv(const std::string& kind) const {
    return {index("self_attn.q_proj." + kind), index("self_attn.k_proj." + kind),
            index("self_attn.v_proj." + kind)};
  }

  [[nodiscard]] LatentTensors latent() const {
    LatentTensors tensors{.q_down = find("self_attn.q_a_proj.weight"),
                          .kv_down = index("self_attn.kv_a_proj_with_mqa.weight"),
                          .kv_norm = index("self_attn.kv_a_layernorm.weight"),
                          .kv_up = index("self_attn.kv_b_proj.weight")};
    if (tensors.q_down) tensors.q_norm = index("self_attn.q_a_layernorm.weight");
    tensors.q_up = index(tensors.q_down ? "self_attn.q_b_proj.weight" : "self_attn.q_proj.weight");
    return tensors;
  }

  [[nodiscard]] MlpTensors mlp(const std::string& name) const {
    return {index(name + ".gate_proj.weight"), index(name + ".up_proj.weight"),
            index(name + ".down_proj.weight")};
  }

  [[nodiscard]] MoeTensors moe() const {
    const auto experts = narrow<uint32_t>(catalogue_.config().experts);
    MoeTensors tensors{.router = index("mlp.gate.weight"),
                       .router_bias = find("mlp.gate.e_score_correction_bias"),
                       .experts = experts,
                       .first_expert = mlp("mlp.experts.0")};
    if (find("mlp.shared_experts.gate_proj.weight")) tensors.shared = mlp("mlp.shared_experts");
    if (experts > 1) tensors.stride = mlp("mlp.experts.1").gate - tensors.first_expert.gate;
    check_stride(tensors);
    return tensors;
  }

  /// Seventy thousand searches would cost more than all else that planning does.
  void check_stride(const MoeTensors& tensors) const {
    const auto name = fmt::format("mlp.experts.{}", tensors.experts - 1);
    const auto expected = tensors.expert(tensors.experts - 1);
    const auto found = mlp(name);
    if (found.gate == expected.gate && found.up == expected.up && found.down == expected.down) {
      return;
    }
    throw runtime_error(fmt::format("the catalogue of {} does not list the experts of {}mlp in "
                                    "order",
                                    catalogue_.model_name(), prefix_),
                        "this is a bug in the catalogue: please report it with the command line");
  }

  const Catalogue& catalogue_;
  std::string prefix_;
};

}  // namespace

std::vector<LayerTensors> find_layer_tensors(const Catalogue& catalogue) {
  std::vector<LayerTensors> layers;
  layers.reserve(catalogue.config().layers);
  for (uint64_t layer = 0; layer < catalogue.config().layers; ++layer) {
    layers.push_back(LayerFinder(catalogue, layer).all());
  }
  return layers;
}

}  // namespace awex
