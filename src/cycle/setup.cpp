#include "cycle/setup.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "cycle/common_options.hpp"
#include "cycle/host_room.hpp"
#include "cycle/needs.hpp"
#include "engine/trainer_stand_in.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/digest.hpp"
#include "transfer/planner.hpp"
#include "version.hpp"

namespace awex {
namespace {

void lay_out(Setup& setup, const RunOptions& options) {
  setup.source = open_model(options.model, options.layers);
  const Catalogue& catalogue = setup.catalogue();
  const uint32_t ranks = setup.roles.per_role;
  setup.held = std::make_unique<Catalogue>(held_catalogue(options.inference, catalogue));
  const Catalogue& held = *setup.held;
  setup.trainer_base = make_trainer_layout(options.trainer, catalogue, ranks);
  setup.trainer = with_scales(make_trainer_layout(options.trainer, catalogue, ranks), held);
  setup.inference = make_inference_layout(options.inference, held, ranks);
  const Stopwatch watch;
  setup.trainer_shards = RoleShards(held, *setup.trainer);
  setup.inference_shards = RoleShards(held, *setup.inference);
  setup.plan_seconds = watch.seconds();
  setup.trainer_copies = setup.trainer_shards.copies_of_tensors(held);
  setup.inference_copies = setup.inference_shards.copies_of_tensors(held);
  const auto identity =
      fmt::format("{} {:#x} {} {} {}", kVersion, held.fingerprint(), setup.trainer->describe(),
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

void plan(const Job& job, Setup& setup) {
  const auto& own = job.peers()[static_cast<size_t>(job.rank())];
  const auto& partner = job.peers()[static_cast<size_t>(setup.devices.partner)];
  const bool trains = own.role == Role::kTrainer;
  const uint32_t trainer = (trains ? own : partner).role_rank;
  const uint32_t inference = (trains ? partner : own).role_rank;
  setup.base_here = setup.trainer_base->rank_layout(trainer);
  setup.trainer_here = setup.trainer->rank_layout(trainer);
  setup.inference_here = setup.inference->rank_layout(inference);
  const Stopwatch watch;
  const Planner planner(*setup.held, setup.trainer_shards, setup.inference_shards,
                        setup.devices.placement);
  setup.plan = planner.part(setup.devices.placement.inference_device[inference]);
  setup.plan_seconds += watch.seconds();
  // Every inference rank proves what it receives: together they prove the whole plan.
  if (trains) return;
  prove_received(setup.plan, *setup.held, *setup.trainer, *setup.inference, inference);
}

/// By device, in whole chunks as they are taken.
std::vector<DeviceNeeds> needs_in_chunks(const Setup& setup, const RunOptions& options) {
  auto needs =
      needs_of_devices(*setup.trainer_base, *setup.inference, *setup.held, setup.devices.placement,
                       {options.optimizer, options.kv_cache_bytes, setup.plan.remote_bytes > 0});
  for (auto& device : needs) {
    for (uint64_t* bytes : {&device.trainer_weights, &device.optimizer, &device.inference_weights,
                            &device.kv_cache, &device.staging}) {
      *bytes = held_bytes_for(*bytes);
    }
  }
  return needs;
}

/// The peaks of all pairs that share a GPU, added up, against its budget.
void check_budget(const Job& job, const Setup& setup, const RunOptions& options,
                  const std::vector<DeviceNeeds>& needs, const std::vector<uint64_t>& free_bytes) {
  std::vector<uint64_t> peak(static_cast<size_t>(setup.devices.gpus), 0);
  std::vector<std::string> moment(peak.size());
  for (const auto& peer : job.peers()) {
    if (peer.role != Role::kTrainer) continue;
    const auto device = setup.devices.placement.trainer_device[peer.role_rank];
    const auto gpu = setup.devices.physical[static_cast<size_t>(peer.rank)];
    const auto of_pair = peak_of_cycle(needs[device], options.offload);
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

/// What this rank will hold of host memory: offloaded bytes, and on `host` also what stands in for
/// the memory of its device.
uint64_t host_bytes_here(const Job& job, Command command, const Setup& setup,
                         const RunOptions& options, const std::vector<DeviceNeeds>& needs) {
  const auto& own = job.peers()[static_cast<size_t>(job.rank())];
  if (own.role != Role::kTrainer) return 0;
  uint64_t bytes = 0;
  for (const Tag tag : offloaded_tags(command, options)) {
    bytes += tag == Tag::kOptimizer ? TrainerStandIn::optimizer_bytes(setup.base_here)
                                    : setup.trainer_here.bytes;
  }
  if (setup.backend == BackendKind::kHost) {
    const auto device = setup.devices.placement.trainer_device[own.role_rank];
    bytes += peak_of_cycle(needs[device], options.offload).bytes;
  }
  return bytes;
}

}  // namespace

std::vector<Tag> offloaded_tags(Command command, const RunOptions& options) {
  std::vector<Tag> tags;
  if (!options.offload) return tags;
  if (options.optimizer) tags.push_back(Tag::kOptimizer);
  if (command != Command::kTransfer) tags.push_back(Tag::kWeights);
  return tags;
}

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
  std::vector<DeviceNeeds> needs;
  job.do_and_agree([&] {
    plan(job, setup);
    needs = needs_in_chunks(setup, options);
    check_budget(job, setup, options, needs, free_bytes);
  });
  check_host_room(job, host_bytes_here(job, command, setup, options, needs));
  return setup;
}

}  // namespace awex
