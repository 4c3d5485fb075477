#pragma once

#include <cstdint>
#include <vector>

#include "cycle/budget.hpp"
#include "layout/layout.hpp"
#include "plan/plan.hpp"

namespace awex {

/// What the ranks of a run hold besides weights.
struct Belongings {
  bool optimizer = true;
  uint64_t kv_cache_bytes = 0;  ///< Of each inference rank.
  bool staging = false;         ///< Whether any bytes go between devices.
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
