#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cycle/budget.hpp"
#include "engine/engine.hpp"
#include "layout/layout.hpp"
#include "plan/plan.hpp"

namespace awex {

/// What the ranks of a run hold besides weights.
struct Belongings {
  bool optimizer = true;
  uint64_t kv_cache_bytes = 0;  ///< Of each inference rank.
  bool staging = false;         ///< Whether any bytes go between devices.
  /// What engines that attach ask for, by role rank, in place of the above; empty where those of a
  /// role are built in.
  std::vector<EngineNeeds> trainers{};
  std::vector<EngineNeeds> inference{};
};

/// What the two ranks of every device hold, by device. `trainer` is without scales, which no
/// optimizer trains; those that `held` asks for are added. Layouts are evaluated once for each
/// group of ranks that hold the same.
[[nodiscard]] std::vector<DeviceNeeds> needs_of_devices(const Layout& trainer,
                                                        const Layout& inference,
                                                        const Catalogue& held,
                                                        const Placement& placement,
                                                        const Belongings& belongings);

}  // namespace awex
