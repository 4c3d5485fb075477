#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "layout/builder.hpp"
#include "layout/layout.hpp"
#include "model/catalogue.hpp"
#include "plan/plan.hpp"

/// Layouts with the structure and the counts of large clusters, for measuring planning and for its
/// properties at scale: pipeline stages, experts spread over more ranks than attention is, replicas
/// of part of the model. They stand for no engine: names and fusions are left out.
namespace awex::test {

/// The sizes of a large mixture-of-experts model with latent attention; all matrices bf16.
struct LargeModel {
  uint64_t layers = 61;
  uint64_t dense_layers = 1;
  uint64_t experts = 384;
  uint64_t hidden = 7168;
  uint64_t intermediate = 18432;
  uint64_t moe_intermediate = 2048;
  uint64_t heads = 64;
  uint64_t vocab = 163840;
};

/// How a tensor is cut: over which group of ranks, and along which side.
enum class Cut : uint8_t { kNone, kRows, kCols, kExpert };

struct LargeTensor {
  TensorInfo info;
  Cut cut = Cut::kNone;
  uint64_t layer = 0;
  uint64_t expert = 0;
};

[[nodiscard]] inline std::vector<LargeTensor> large_tensors(const LargeModel& m) {
  std::vector<LargeTensor> all;
  const auto add = [&](std::string name, uint64_t rows, uint64_t cols, Cut cut, uint64_t layer,
                       uint64_t expert = 0) {
    all.push_back({{std::move(name), DType::kBf16, rows, cols, cols == 1}, cut, layer, expert});
  };
  add("embed_tokens", m.vocab, m.hidden, Cut::kRows, 0);
  for (uint64_t l = 0; l < m.layers; ++l) {
    const auto at = fmt::format("layers.{}.", l);
    add(at + "input_layernorm", m.hidden, 1, Cut::kNone, l);
    add(at + "q_a_proj", 1536, m.hidden, Cut::kNone, l);
    add(at + "q_a_layernorm", 1536, 1, Cut::kNone, l);
    add(at + "q_b_proj", m.heads * 192, 1536, Cut::kRows, l);
    add(at + "kv_a_proj", 576, m.hidden, Cut::kNone, l);
    add(at + "kv_a_layernorm", 512, 1, Cut::kNone, l);
    add(at + "kv_b_proj", m.heads * 256, 512, Cut::kRows, l);
    add(at + "o_proj", m.hidden, m.heads * 128, Cut::kCols, l);
    add(at + "post_attention_layernorm", m.hidden, 1, Cut::kNone, l);
    const bool dense = l < m.dense_layers;
    const uint64_t inner = dense ? m.intermediate : m.moe_intermediate;
    add(at + "mlp.gate_proj", inner, m.hidden, Cut::kRows, l);
    add(at + "mlp.up_proj", inner, m.hidden, Cut::kRows, l);
    add(at + "mlp.down_proj", m.hidden, inner, Cut::kCols, l);
    if (dense) continue;
    add(at + "router", m.experts, m.hidden, Cut::kNone, l);
    for (uint64_t e = 0; e < m.experts; ++e) {
      const auto expert = fmt::format("{}experts.{}.", at, e);
      add(expert + "gate_proj", m.moe_intermediate, m.hidden, Cut::kExpert, l, e);
      add(expert + "up_proj", m.moe_intermediate, m.hidden, Cut::kExpert, l, e);
      add(expert + "down_proj", m.hidden, m.moe_intermediate, Cut::kExpert, l, e);
    }
  }
  add("norm", m.hidden, 1, Cut::kNone, m.layers - 1);
  add("lm_head", m.vocab, m.hidden, Cut::kRows, m.layers - 1);
  return all;
}

[[nodiscard]] inline Catalogue large_catalogue(const LargeModel& model) {
  std::vector<TensorInfo> tensors;
  for (auto& tensor : large_tensors(model)) tensors.push_back(std::move(tensor.info));
  return {"large", {}, std::move(tensors)};
}

/// Ranks run tp fastest, then replicas, then pipeline stages; the experts of a stage are dealt in
/// blocks to groups of `ep` ranks. With pp = 1 and ep = tp it is an inference engine's instances.
class LargeLayout final : public Layout {
 public:
  LargeLayout(const Catalogue& catalogue, const LargeModel& model, uint32_t ranks, uint32_t tp,
              uint32_t pp, uint32_t ep)
      : catalogue_(catalogue),
        model_(model),
        tensors_(large_tensors(model)),
        ranks_(ranks),
        tp_(tp),
        stage_ranks_(ranks / pp),
        pp_(pp),
        ep_(ep),
        attention_(pp),
        experts_(pp * model.experts) {
    const uint64_t a_stage = (model.layers + pp - 1) / pp;
    for (const auto& tensor : tensors_) {
      const uint64_t stage = tensor.layer / a_stage;
      const bool is_expert = tensor.cut == Cut::kExpert;
      (is_expert ? experts_[stage * model.experts + tensor.expert] : attention_[stage])
          .push_back(&tensor);
    }
  }

  [[nodiscard]] std::string describe() const override {
    return fmt::format("large:tp={},pp={},ep={}", tp_, pp_, ep_);
  }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override {
    const uint32_t in_stage = rank % stage_ranks_;
    return rank - in_stage + in_stage % std::max(tp_, ep_);
  }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    const uint32_t in_stage = rank % stage_ranks_;
    const uint64_t stage = rank / stage_ranks_;
    const Part tp{tp_, in_stage % tp_};
    const Part ep{ep_, in_stage % ep_};
    RankLayoutBuilder builder(catalogue_, in_stage / tp_);
    for (const auto* tensor : attention_[stage]) add(builder, *tensor, tp);
    const Range mine = ep.of(model_.experts);
    for (uint64_t expert = mine.begin; expert < mine.end; ++expert) {
      for (const auto* tensor : experts_[stage * model_.experts + expert])
        add(builder, *tensor, {});
    }
    return builder.finish();
  }

 private:
  static void add(RankLayoutBuilder& builder, const LargeTensor& tensor, Part tp) {
    // Engines put their own names together; so does this one, at the same cost.
    const auto parameter = fmt::format("decoder.layers.{}.{}", tensor.layer, tensor.info.name);
    const uint32_t index = builder.catalogue().index_of(tensor.info.name);
    switch (tensor.cut) {
      case Cut::kNone:
      case Cut::kExpert:
        builder.replicated(parameter, index, tp);
        return;
      case Cut::kRows:
        builder.split_rows(parameter, index, tp);
        return;
      case Cut::kCols:
        builder.split_cols(parameter, index, tp);
        return;
    }
  }

  const Catalogue& catalogue_;
  LargeModel model_;
  std::vector<LargeTensor> tensors_;
  uint32_t ranks_;
  uint32_t tp_;
  uint32_t stage_ranks_;
  uint32_t pp_;
  uint32_t ep_;
  std::vector<std::vector<const LargeTensor*>> attention_;  ///< By stage: all but experts.
  std::vector<std::vector<const LargeTensor*>> experts_;    ///< By stage, then by expert.
};

/// Rank i of both roles on device i, `per_node` devices a node.
[[nodiscard]] inline Placement colocated(uint32_t devices, uint32_t per_node) {
  Placement placement;
  for (uint32_t device = 0; device < devices; ++device) {
    placement.trainer_device.push_back(device);
    placement.inference_device.push_back(device);
    placement.device_node.push_back(device / per_node);
  }
  return placement;
}

}  // namespace awex::test
