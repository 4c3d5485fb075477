#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/job.hpp"
#include "cycle/run_options.hpp"
#include "cycle/world.hpp"
#include "layout/layout.hpp"
#include "memory/region.hpp"
#include "model/weights.hpp"
#include "plan/plan.hpp"
#include "plan/plan_shards.hpp"

namespace awex {

/// Everything about a run that is settled before memory is taken. The same on every rank, but for
/// what concerns this rank's device. Members refer to both catalogues: keep it whole.
struct Setup {
  std::shared_ptr<WeightSource> source;  ///< Shared with reads that storage holds back.
  std::unique_ptr<Catalogue> held;       ///< What inference holds of the model.
  RoleMap roles;
  BackendKind backend = BackendKind::kHost;
  std::unique_ptr<Layout> trainer_base;  ///< What the trainer knows of: without scales.
  std::unique_ptr<Layout> trainer;       ///< With the scales of what is quantised.
  std::unique_ptr<Layout> inference;
  RoleShards trainer_shards;
  RoleShards inference_shards;
  std::vector<uint64_t> trainer_copies;    ///< By held tensor.
  std::vector<uint64_t> inference_copies;  ///< By held tensor.
  uint64_t fingerprint = 0;                ///< Of model, files, layouts and build.
  size_t host_threads = 1;
  std::vector<int> one_core_ranks;  ///< HostShare::one_core_ranks.
  std::unique_ptr<Device> device;
  DeviceMap devices;
  RankLayout base_here;       ///< Of the trainer rank on this rank's device, without scales.
  RankLayout trainer_here;    ///< The same with scales.
  RankLayout inference_here;  ///< Of the inference rank there.
  Plan plan;                  ///< This device's part.
  uint64_t gpu_budget = 0;    ///< Bytes that all ranks on this rank's GPU may hold together.
  double plan_seconds = 0;

  /// The model's own tensors, as the trainer holds them.
  [[nodiscard]] const Catalogue& catalogue() const { return source->catalogue(); }
};

/// The trainer's tags that a command offloads, beginning with the first of an update.
[[nodiscard]] std::vector<Tag> offloaded_tags(Command command, const RunOptions& options);

/// Checks that all ranks want the same, reads the model and makes the layouts before any device is
/// opened; then pairs the devices, makes and proves this device's part of the plan, and checks that
/// the peak fits. Throws agreed errors. Collective.
[[nodiscard]] Setup prepare(Job& job, Command command, const RunOptions& options);

/// What can be said of model and layouts without knowing the number of ranks: reads config.json, no
/// weights. Throws the request errors of reading it and of the specs. Not collective; needs no MPI.
void check_model_and_layouts(const RunOptions& options);

}  // namespace awex
