#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cycle/budget.hpp"
#include "layout/layout.hpp"
#include "layout/spec.hpp"
#include "model/catalogue.hpp"
#include "plan/plan.hpp"
#include "plan/planner.hpp"

namespace awex {

/// Speeds of the links that an update goes over, in payload bytes per second.
struct LinkSpeeds {
  double host = 55.0e9;      ///< Between a GPU and pinned host memory. Measured: H100, PCIe 5 x16.
  double device = 1450.0e9;  ///< On the GPU, into another layout. Measured: H100, 0.96 of a memcpy.
  double node = 300.0e9;     ///< Between GPUs of a node. Assumed: NVLink 4 at two thirds.
  double network = 40.0e9;   ///< Of a GPU to other nodes. Assumed: 400 Gb/s at four fifths.
};

/// What a user asks of `plan`. Plain data.
struct ForecastOptions {
  EngineSpec trainer{"megatron:tp=1"};
  EngineSpec inference{"sglang:tp=1"};
  uint32_t gpus = 1;
  uint32_t gpus_per_node = 8;  ///< The last node may have fewer.
  bool optimizer = true;
  uint64_t kv_cache_bytes = uint64_t{64} << 20;  ///< Of each inference rank.
  bool offload = true;
  std::optional<uint64_t> gpu_memory;  ///< Budget of a GPU; absent: not checked.
  std::optional<uint64_t>
      host_memory;  ///< Budget of a node for pinned memory; absent: not checked.
  LinkSpeeds links;
};

/// What one GPU sends and receives in a transfer, in bytes.
struct DeviceTraffic {
  uint64_t local = 0;
  uint64_t sent_in_node = 0;
  uint64_t received_in_node = 0;
  uint64_t sent_to_nodes = 0;
  uint64_t received_from_nodes = 0;

  [[nodiscard]] uint64_t sent() const { return sent_in_node + sent_to_nodes; }
};

/// A phase on the GPU, or node, that it is hardest for.
struct PhaseForecast {
  CyclePhase phase;               ///< Bytes: the most of any GPU.
  uint64_t node_host_bytes = 0;   ///< Pinned host memory: the most of any node.
  std::optional<double> seconds;  ///< Absent for what the links do not bound (train, rollout).
};

/// Something that exceeds a budget.
struct Misfit {
  std::string what;  ///< "GPU 3", "node 0".
  std::string moment;
  uint64_t needed_bytes = 0;
  uint64_t budget_bytes = 0;
  std::string option;  ///< The budget's option: "--gpu-memory".
  std::string hint;    ///< What would make it fit.
};

/// All that `plan` says.
struct Forecast {
  std::unique_ptr<Catalogue> held;  ///< What inference holds of the model.
  std::unique_ptr<Layout> trainer;  ///< With the scales of what is quantised.
  std::unique_ptr<Layout> inference;
  Placement placement;
  Plan totals;              ///< Without pieces.
  double plan_seconds = 0;  ///< That planning itself took, for the whole cluster.
  std::vector<DeviceTraffic> devices;
  /// Bytes from group to group of GPUs, row by row: `groups` groups of `group_gpus` neighbours.
  std::vector<uint64_t> matrix;
  uint32_t groups = 0;
  uint32_t group_gpus = 1;
  std::vector<PhaseForecast> phases;
  std::vector<Misfit> misfits;
  std::optional<Plan> listed;  ///< One GPU's part of the plan, when it is asked for.
};

/// Groups in a traffic matrix that a person still looks at.
inline constexpr uint32_t kMostGroups = 16;

/// Plans the transfer of a whole cluster and foretells memory and time. GPU i has rank i of both
/// roles. `listed_gpu` asks for the pieces of one GPU. Keeps a reference to the catalogue. Throws a
/// request error when model, layouts or numbers do not go together; what does not fit a budget is
/// no exception but a Misfit.
[[nodiscard]] Forecast make_forecast(const Catalogue& catalogue, const ForecastOptions& options,
                                     std::optional<uint32_t> listed_gpu);

}  // namespace awex
