#include "cycle/hand_over.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/build_identity.hpp"
#include "base/wait.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/digest.hpp"
#include "plan/planner.hpp"

namespace awex {

HeldModel hold_model(std::shared_ptr<WeightSource> source, const EngineSpec& trainer,
                     const EngineSpec& inference, uint32_t ranks) {
  HeldModel model;
  model.source = std::move(source);
  const Catalogue& catalogue = model.catalogue();
  model.held = std::make_unique<Catalogue>(held_catalogue(inference, catalogue));
  const Catalogue& held = *model.held;
  model.trainer_base = make_trainer_layout(trainer, catalogue, ranks);
  model.trainer = with_scales(make_trainer_layout(trainer, catalogue, ranks), held);
  model.inference = make_inference_layout(inference, held, ranks);
  const Stopwatch watch;
  model.trainer_shards = RoleShards(held, *model.trainer);
  model.inference_shards = RoleShards(held, *model.inference);
  model.seconds = watch.seconds();
  model.trainer_replicas = model.trainer_shards.replicas_of_tensors(held);
  model.inference_replicas = model.inference_shards.replicas_of_tensors(held);
  model.fingerprint =
      tensor_key(fmt::format("{} {:#x} {} {} {}", build_identity(), held.fingerprint(),
                             model.trainer->describe(), model.inference->describe(), ranks));
  return model;
}

HandOver plan_hand_over(HeldModel model, const Placement& placement, DevicePair here) {
  HandOver hand_over;
  hand_over.model = std::move(model);
  const auto& all = hand_over.model;
  hand_over.base_here = all.trainer_base->rank_layout(here.trainer);
  hand_over.trainer_here = add_scales(hand_over.base_here, *all.held);
  hand_over.inference_here = all.inference->rank_layout(here.inference);
  const Stopwatch watch;
  const Planner planner(*all.held, all.trainer_shards, all.inference_shards, placement);
  hand_over.plan = planner.part(placement.inference_device[here.inference]);
  hand_over.plan_seconds = all.seconds + watch.seconds();
  return hand_over;
}

void prove_hand_over(const HandOver& hand_over, uint32_t inference) {
  const auto& model = hand_over.model;
  prove_received(hand_over.plan, *model.held, *model.trainer, *model.inference, inference);
}

}  // namespace awex
