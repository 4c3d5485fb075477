#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layout/layout.hpp"
#include "layout/spec.hpp"
#include "model/weights.hpp"
#include "plan/plan.hpp"
#include "plan/plan_shards.hpp"

namespace awex {

/// What both roles hold of a model, on however many GPUs of whatever kind. The same on every rank.
/// Members refer to both catalogues: keep it whole.
struct HeldModel {
  std::shared_ptr<WeightSource> source;  ///< Shared with reads that storage holds back.
  std::unique_ptr<Catalogue> held;       ///< What inference holds of the model.
  std::unique_ptr<Layout> trainer_base;  ///< What the trainer knows of: without scales.
  std::unique_ptr<Layout> trainer;       ///< With the scales of what is quantised.
  std::unique_ptr<Layout> inference;
  RoleShards trainer_shards;
  RoleShards inference_shards;
  std::vector<uint64_t> trainer_replicas;    ///< By held tensor.
  std::vector<uint64_t> inference_replicas;  ///< By held tensor.
  uint64_t fingerprint = 0;                  ///< Of model, layouts and build; then of files, too.
  double seconds = 0;                        ///< That indexing the shards took.

  /// The model's own tensors, as the trainer holds them.
  [[nodiscard]] const Catalogue& catalogue() const { return source->catalogue(); }
};

/// Lays a model out over `ranks` ranks of each role. Pure, but for what the source reads. Throws
/// request errors when model, specs and ranks do not go together.
[[nodiscard]] HeldModel hold_model(std::shared_ptr<WeightSource> source, const EngineSpec& trainer,
                                   const EngineSpec& inference, uint32_t ranks);

/// What goes from the trainers to inference, and where: everything about the weights that is
/// settled before memory is taken. The same on every rank, but for the parts of this rank's device.
struct HandOver {
  HeldModel model;
  RankLayout base_here;       ///< Of the trainer rank on this rank's device, without scales.
  RankLayout trainer_here;    ///< The same with scales.
  RankLayout inference_here;  ///< Of the inference rank there.
  Plan plan;                  ///< This device's part.
  double plan_seconds = 0;
};

/// The two ranks of a device, by role rank.
struct DevicePair {
  uint32_t trainer = 0;
  uint32_t inference = 0;
};

/// Plans what the device of `here` sends and receives. Pure.
[[nodiscard]] HandOver plan_hand_over(HeldModel model, const Placement& placement, DevicePair here);

/// Proves that an inference rank receives all that it holds, and each byte once. When every
/// inference rank has done so, the whole plan is proven. Pure. Throws a run-time error.
void prove_hand_over(const HandOver& hand_over, uint32_t inference);

}  // namespace awex
