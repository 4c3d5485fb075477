#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/job.hpp"
#include "cycle/run_options.hpp"
#include "cycle/world.hpp"
#include "layout/layout.hpp"
#include "model/weights.hpp"
#include "transfer/plan.hpp"

namespace awex {

/// Everything about a run that is settled before memory is taken. The same on every rank, but for
/// `device` and `host_threads`. Members refer to `source`'s catalogue: keep it whole.
struct Setup {
  std::unique_ptr<WeightSource> source;
  RoleMap roles;
  BackendKind backend = BackendKind::kHost;
  std::unique_ptr<Layout> trainer;
  std::unique_ptr<Layout> inference;
  std::vector<RankLayout> trainer_ranks;    ///< By role rank.
  std::vector<RankLayout> inference_ranks;  ///< By role rank.
  std::vector<uint64_t> trainer_copies;     ///< By tensor.
  std::vector<uint64_t> inference_copies;   ///< By tensor.
  uint64_t fingerprint = 0;                 ///< Of model, layouts and program version.
  size_t host_threads = 1;
  std::unique_ptr<Device> device;
  DeviceMap devices;
  Plan plan;
  double plan_seconds = 0;

  [[nodiscard]] const Catalogue& catalogue() const { return source->catalogue(); }
};

/// Checks that all ranks want the same, reads the model and makes the layouts before any device is
/// opened; then pairs the devices, makes and proves the plan, and checks that the peak fits. Throws
/// agreed errors. Collective.
[[nodiscard]] Setup prepare(Job& job, Command command, const RunOptions& options);

}  // namespace awex
