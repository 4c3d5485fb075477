#include "cycle/setup.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "cycle/budget.hpp"
#include "cycle/common_options.hpp"
#include "engine/trainer_stand_in.hpp"
#include "layout/engines.hpp"
#include "memory/host_memory.hpp"
#include "model/digest.hpp"
#include "transfer/weight_transfer.hpp"
#include "version.hpp"

namespace awex {
namespace {

void lay_out(Setup& setup, const RunOptions& options) {
  setup.source = open_model(options.model, options.layers);
  const Catalogue& catalogue = setup.catalogue();
  setup.trainer = make_trainer_layout(options.trainer, catalogue, setup.roles.per_role);
  setup.inference = make_inference_layout(options.inference, catalogue, setup.roles.per_role);
  setup.trainer_ranks = all_rank_layouts(*setup.trainer);
  setup.inference_ranks = all_rank_layouts(*setup.inference);
  setup.trainer_copies = copies_of_tensors(catalogue, setup.trainer_ranks);
  setup.inference_copies = copies_of_tensors(catalogue, setup.inference_ranks);
  const auto identity =
      fmt::format("{} {:#x} {} {} {}", kVersion, catalogue.fingerprint(), setup.trainer->describe(),
                  setup.inference->describe(), setup.roles.per_role);
  setup.fingerprint = tensor_key(identity);
}

void check_same_model(Job& job, const Setup& setup) {
  const auto all = job.all_gather_value(setup.fingerprint, "the fingerprints of all ranks");
  const auto other = std::find_if(all.begin(), all.end(), [&](uint64_t f) { return f != all[0]; });
  if (other == all.end()) return;
  fail_together(job, request_error(fmt::format("rank 0 and rank {} do not read the same model",
                                               other - all.begin()),
                                   "give every rank the same --model and --layers"));
}

void plan(Setup& setup) {
  const Stopwatch watch;
  setup.plan = make_plan(setup.catalogue(), setup.trainer_ranks, setup.inference_ranks,
                         setup.devices.placement);
  setup.plan_seconds = watch.seconds();
  prove_plan(setup.plan, setup.catalogue(), setup.trainer_ranks, setup.inference_ranks);
}

DeviceNeeds needs_of_device(const Setup& setup, const RunOptions& options, uint32_t device) {
  const auto& placement = setup.devices.placement;
  DeviceNeeds needs;
  for (uint32_t rank = 0; rank < setup.roles.per_role; ++rank) {
    if (placement.trainer_device[rank] == device) {
      needs.trainer_weights = held_bytes_for(setup.trainer_ranks[rank].bytes);
      if (options.optimizer) {
        needs.optimizer =
            held_bytes_for(TrainerStandIn::optimizer_bytes(setup.trainer_ranks[rank]));
      }
    }
    if (placement.inference_device[rank] == device) {
      needs.inference_weights = held_bytes_for(setup.inference_ranks[rank].bytes);
    }
  }
  needs.kv_cache = held_bytes_for(options.kv_cache_bytes);
  needs.staging = setup.plan.remote_bytes > 0 ? held_bytes_for(2 * kStagingBytes) : 0;
  return needs;
}

/// The peaks of all pairs that share a GPU, added up, against its budget.
void check_budget(const Job& job, const Setup& setup, const RunOptions& options,
                  const std::vector<uint64_t>& free_bytes) {
  std::vector<uint64_t> peak(static_cast<size_t>(setup.devices.gpus), 0);
  std::vector<std::string> moment(peak.size());
  for (const auto& peer : job.peers()) {
    if (peer.role != Role::kTrainer) continue;
    const auto device = setup.devices.placement.trainer_device[peer.role_rank];
    const auto gpu = setup.devices.physical[static_cast<size_t>(peer.rank)];
    const auto of_pair = peak_of_cycle(needs_of_device(setup, options, device), options.offload);
    peak[gpu] = checked_add(peak[gpu], of_pair.bytes, "the memory of a GPU");
    moment[gpu] = of_pair.moment;
  }
  for (const auto& peer : job.peers()) {
    const auto gpu = setup.devices.physical[static_cast<size_t>(peer.rank)];
    const uint64_t free = free_bytes[static_cast<size_t>(peer.rank)];
    const uint64_t budget = options.gpu_memory.value_or(free);
    if (peak[gpu] <= std::min(budget, free)) continue;
    throw request_error(fmt::format("the GPU of {} needs {} in {}, and has {}", peer.describe(),
                                    format_bytes(peak[gpu]), moment[gpu],
                                    budget < free ? format_bytes(budget) + " by --gpu-memory"
                                                  : format_bytes(free) + " free"),
                        options.offload
                            ? "spread the model over more GPUs, keep fewer --layers, or shrink "
                              "--kv-cache"
                            : "leave out --no-offload");
  }
}

/// Warns where a node has less memory than its ranks will hold there: the kernel would end one.
void check_host_memory(Job& job, const Setup& setup, const RunOptions& options) {
  const auto available = job.all_gather_value(available_host_memory(), "available host memory");
  std::map<std::string, uint64_t> needs;
  std::map<std::string, uint64_t> least;
  for (const auto& peer : job.peers()) {
    const uint64_t has = available[static_cast<size_t>(peer.rank)];
    least[peer.host] = std::min(least.try_emplace(peer.host, has).first->second, has);
    if (peer.role != Role::kTrainer) continue;
    const auto device = setup.devices.placement.trainer_device[peer.role_rank];
    const auto of_device = needs_of_device(setup, options, device);
    needs[peer.host] += host_bytes_of_cycle(of_device, options.offload);
    if (setup.backend == BackendKind::kHost) {
      needs[peer.host] += peak_of_cycle(of_device, options.offload).bytes;
    }
  }
  if (job.rank() != 0) return;
  for (const auto& [host, bytes] : needs) {
    if (bytes <= least[host]) continue;
    log::warning(
        fmt::format("host {} will hold {} of host memory and has {}: the kernel may end a "
                    "rank; use fewer --layers or --optimizer none",
                    host, format_bytes(bytes), format_bytes(least[host])));
  }
}

}  // namespace

Setup prepare(Job& job, Command command, const RunOptions& options) {
  Setup setup;
  check_common_options(job, command, options);
  setup.roles = assign_roles(job, options.role);
  job.do_and_agree([&] { lay_out(setup, options); });
  check_same_model(job, setup);
  setup.backend = choose_backend(job, options.backend);
  setup.host_threads = host_threads_for(job);
  job.do_and_agree(
      [&] { setup.device = open_device(job, setup.roles, setup.backend, setup.host_threads); });
  setup.devices = pair_devices(job, setup.roles, *setup.device, options.share_gpu);
  const auto free_bytes = job.all_gather_value(setup.device->memory().free_bytes, "free memory");
  job.do_and_agree([&] {
    plan(setup);
    check_budget(job, setup, options, free_bytes);
  });
  check_host_memory(job, setup, options);
  return setup;
}

}  // namespace awex
