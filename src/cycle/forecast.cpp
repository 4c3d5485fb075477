#include "cycle/forecast.hpp"

#include <algorithm>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "base/wait.hpp"
#include "cycle/needs.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "memory/chunking.hpp"

namespace awex {
namespace {

Placement place(uint32_t gpus, uint32_t gpus_per_node) {
  Placement placement;
  for (uint32_t gpu = 0; gpu < gpus; ++gpu) {
    placement.trainer_device.push_back(gpu);
    placement.inference_device.push_back(gpu);
    placement.device_node.push_back(gpu / gpus_per_node);
  }
  return placement;
}

void count_traffic(const Planner& planner, Forecast& forecast) {
  const auto gpus = narrow<uint32_t>(forecast.placement.device_node.size());
  const uint32_t nodes = forecast.placement.device_node.back() + 1;
  const auto per_node = narrow<uint32_t>(ceil_div(gpus, nodes));
  forecast.group_gpus =
      static_cast<uint32_t>(gpus <= kMostGroups ? 1 : per_node * ceil_div(nodes, kMostGroups));
  forecast.groups = static_cast<uint32_t>(ceil_div(gpus, forecast.group_gpus));
  forecast.matrix.assign(size_t{forecast.groups} * forecast.groups, 0);
  forecast.devices.assign(gpus, {});
  planner.for_each_flow([&](const Flow& flow) {
    const size_t row = flow.source / forecast.group_gpus;
    forecast.matrix[row * forecast.groups + flow.target / forecast.group_gpus] += flow.bytes;
    auto& source = forecast.devices[flow.source];
    auto& target = forecast.devices[flow.target];
    switch (flow.near) {
      case Near::kDevice:
        target.local += flow.bytes;
        return;
      case Near::kNode:
        source.sent_in_node += flow.bytes;
        target.received_in_node += flow.bytes;
        return;
      case Near::kCluster:
        source.sent_to_nodes += flow.bytes;
        target.received_from_nodes += flow.bytes;
        return;
    }
  });
}

/// Local copies, bytes within the node and bytes to other nodes follow each other; each link
/// works in both directions at once.
double transfer_seconds(const DeviceTraffic& traffic, const LinkSpeeds& links) {
  const auto both_ways = [](uint64_t out, uint64_t in) {
    return static_cast<double>(std::max(out, in));
  };
  return static_cast<double>(traffic.local) / links.device +
         both_ways(traffic.sent_in_node, traffic.received_in_node) / links.node +
         both_ways(traffic.sent_to_nodes, traffic.received_from_nodes) / links.network;
}

/// The same phase on all GPUs, as the hardest of them has it.
PhaseForecast hardest(const std::vector<std::vector<CyclePhase>>& devices, size_t phase,
                      const Placement& placement) {
  PhaseForecast result{devices.front()[phase], 0, std::nullopt};
  std::vector<uint64_t> host_of_node(placement.device_node.back() + size_t{1}, 0);
  for (size_t gpu = 0; gpu < devices.size(); ++gpu) {
    const auto& own = devices[gpu][phase];
    auto& most = result.phase;
    most.device_bytes = std::max(most.device_bytes, own.device_bytes);
    most.host_bytes = std::max(most.host_bytes, own.host_bytes);
    most.link_bytes = std::max(most.link_bytes, own.link_bytes);
    host_of_node[placement.device_node[gpu]] += own.host_bytes;
  }
  result.node_host_bytes = *std::max_element(host_of_node.begin(), host_of_node.end());
  return result;
}

void foretell_phases(const std::vector<DeviceNeeds>& needs, const ForecastOptions& options,
                     Forecast& forecast) {
  std::vector<std::vector<CyclePhase>> devices;
  for (const auto& own : needs)
    devices.push_back(phases_of_cycle(own, options.offload, options.gpu_memory));
  for (size_t i = 0; i < devices.front().size(); ++i) {
    auto phase = hardest(devices, i, forecast.placement);
    if (phase.phase.link_bytes > 0) {
      phase.seconds = static_cast<double>(phase.phase.link_bytes) / options.links.host;
    }
    if (phase.phase.phase == "transfer") {
      double slowest = 0;
      for (const auto& traffic : forecast.devices) {
        slowest = std::max(slowest, transfer_seconds(traffic, options.links));
      }
      phase.seconds = slowest;
    }
    forecast.phases.push_back(phase);
  }
}

/// The GPU that needs most, against its budget.
std::optional<Misfit> gpu_misfit(const std::vector<DeviceNeeds>& needs,
                                 const ForecastOptions& options) {
  if (!options.gpu_memory) return std::nullopt;
  Misfit worst;
  for (size_t gpu = 0; gpu < needs.size(); ++gpu) {
    const auto peak = peak_of_cycle(needs[gpu], options.offload);
    if (peak.bytes <= std::max(*options.gpu_memory, worst.needed_bytes)) continue;
    worst = {fmt::format("GPU {}", gpu), peak.moment,    peak.bytes,
             *options.gpu_memory,        "--gpu-memory", ""};
  }
  if (worst.what.empty()) return std::nullopt;
  return worst;
}

/// The node whose GPUs keep most in host memory, against its budget.
std::optional<Misfit> host_misfit(const std::vector<DeviceNeeds>& needs,
                                  const ForecastOptions& options) {
  if (!options.host_memory || !options.offload) return std::nullopt;
  Misfit worst;
  for (uint32_t first = 0; first < options.gpus; first += options.gpus_per_node) {
    uint64_t kept = 0;
    const uint32_t end = std::min(options.gpus, first + options.gpus_per_node);
    for (uint32_t gpu = first; gpu < end; ++gpu) {
      kept += needs[gpu].trainer_weights + needs[gpu].optimizer;
    }
    if (kept <= std::max(*options.host_memory, worst.needed_bytes)) continue;
    worst = {fmt::format("node {}", first / options.gpus_per_node),
             "the rollout, with the trainer's memory offloaded",
             kept,
             *options.host_memory,
             "--host-memory",
             ""};
  }
  if (worst.what.empty()) return std::nullopt;
  return worst;
}

bool fits(const std::vector<DeviceNeeds>& needs, const ForecastOptions& options) {
  return !gpu_misfit(needs, options) && !host_misfit(needs, options);
}

/// Searches for one changed option that makes everything fit. Every suggestion has been tried.
class Adviser {
 public:
  Adviser(const Catalogue& catalogue, const Catalogue& held, const ForecastOptions& options,
          const Placement& placement, const std::vector<DeviceNeeds>& needs, bool remote)
      : catalogue_(catalogue),
        held_(held),
        options_(options),
        placement_(placement),
        needs_(needs),
        remote_(remote) {}

  [[nodiscard]] std::string advice() const {
    std::vector<std::string> all;
    for (const auto& found : {offload(), kv_cache(), trainer(), inference()}) {
      if (!found.empty()) all.push_back(found);
    }
    if (!all.empty()) return fmt::format("this would fit: {}", fmt::join(all, ", or "));
    return "no single option would make it fit: use more --gpus, split the model further in both "
           "--trainer and --inference, or keep fewer --layers";
  }

 private:
  [[nodiscard]] std::string offload() const {
    auto changed = options_;
    changed.offload = true;
    return !options_.offload && fits(needs_, changed) ? "leaving out --no-offload" : "";
  }

  [[nodiscard]] std::string kv_cache() const {
    if (!options_.gpu_memory) return {};
    uint64_t largest = options_.kv_cache_bytes;
    auto without = needs_;
    for (auto& own : without) {
      const uint64_t cache = std::exchange(own.kv_cache, 0);
      const auto phases = phases_of_cycle(own, options_.offload);
      for (const auto& phase : phases) {
        const bool holds_cache = !options_.offload || phase.moment == "the rollout";
        if (!holds_cache || phase.device_bytes + held_bytes_for(cache) <= *options_.gpu_memory) {
          continue;
        }
        const uint64_t room =
            *options_.gpu_memory - std::min(*options_.gpu_memory, phase.device_bytes);
        largest = std::min(largest, room);
      }
    }
    if (largest >= options_.kv_cache_bytes || !fits(without, options_)) return {};
    constexpr uint64_t kMiB = uint64_t{1} << 20;
    const uint64_t steps = largest / kPhysicalStepBytes;
    return steps == 0 ? "" : fmt::format("--kv-cache {}MiB", steps * kPhysicalStepBytes / kMiB);
  }

  [[nodiscard]] std::string trainer() const {
    return split_further("--trainer", options_.trainer, {"tp", "pp", "ep", "shard"},
                         &ForecastOptions::trainer);
  }

  [[nodiscard]] std::string inference() const {
    return split_further("--inference", options_.inference, {"tp", "pp", "ep"},
                         &ForecastOptions::inference);
  }

  [[nodiscard]] std::string split_further(const char* option, const EngineSpec& spec,
                                          const std::vector<std::string>& keys,
                                          EngineSpec ForecastOptions::*side) const {
    for (uint32_t value = 2; value <= options_.gpus; value *= 2) {
      for (const auto& key : keys) {
        auto changed = options_;
        changed.*side = spec.with(key, value);
        if (would_fit(changed)) return fmt::format("{} {}", option, (changed.*side).text());
      }
    }
    return {};
  }

  [[nodiscard]] bool would_fit(const ForecastOptions& changed) const {
    try {
      const auto trainer = make_trainer_layout(changed.trainer, catalogue_, changed.gpus);
      const auto inference = make_inference_layout(changed.inference, held_, changed.gpus);
      const Belongings belongings{changed.optimizer, changed.kv_cache_bytes, remote_};
      return fits(needs_of_devices(*trainer, *inference, held_, placement_, belongings), changed);
    } catch (const Error&) {
      return false;  // The engine has no such option, or the model does not divide so.
    }
  }

  const Catalogue& catalogue_;
  const Catalogue& held_;
  const ForecastOptions& options_;
  const Placement& placement_;
  const std::vector<DeviceNeeds>& needs_;
  bool remote_;
};

void find_misfits(const Catalogue& catalogue, const std::vector<DeviceNeeds>& needs,
                  const ForecastOptions& options, Forecast& forecast) {
  for (auto& misfit : {gpu_misfit(needs, options), host_misfit(needs, options)}) {
    if (misfit) forecast.misfits.push_back(*misfit);
  }
  if (forecast.misfits.empty()) return;
  const bool remote = forecast.totals.remote_bytes > 0;
  const auto advice =
      Adviser(catalogue, *forecast.held, options, forecast.placement, needs, remote).advice();
  for (auto& misfit : forecast.misfits) misfit.hint = advice;
}

}  // namespace

Forecast make_forecast(const Catalogue& catalogue, const ForecastOptions& options,
                       std::optional<uint32_t> listed_gpu) {
  Forecast forecast;
  forecast.placement = place(options.gpus, options.gpus_per_node);
  forecast.held = std::make_unique<Catalogue>(held_catalogue(options.inference, catalogue));
  const Catalogue& held = *forecast.held;
  const auto base = make_trainer_layout(options.trainer, catalogue, options.gpus);
  forecast.trainer =
      with_scales(make_trainer_layout(options.trainer, catalogue, options.gpus), held);
  forecast.inference = make_inference_layout(options.inference, held, options.gpus);
  const Stopwatch watch;
  const RoleShards from(held, *forecast.trainer);
  const RoleShards to(held, *forecast.inference);
  const Planner planner(held, from, to, forecast.placement);
  count_traffic(planner, forecast);
  forecast.plan_seconds = watch.seconds();
  forecast.totals = planner.totals();
  if (listed_gpu) {
    forecast.listed = planner.part(*listed_gpu);
    prove_received(*forecast.listed, held, *forecast.trainer, *forecast.inference, *listed_gpu);
  }
  const Belongings belongings{options.optimizer, options.kv_cache_bytes,
                              forecast.totals.remote_bytes > 0};
  const auto needs =
      needs_of_devices(*base, *forecast.inference, held, forecast.placement, belongings);
  foretell_phases(needs, options, forecast);
  find_misfits(catalogue, needs, options, forecast);
  return forecast;
}

}  // namespace awex
