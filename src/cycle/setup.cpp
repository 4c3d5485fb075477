#include "cycle/setup.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include "base/build_identity.hpp"
#include "base/checked.hpp"
#include "base/log.hpp"
#include "base/work_progress.hpp"
#include "cycle/accounting.hpp"
#include "cycle/common_options.hpp"
#include "cycle/host_room.hpp"
#include "cycle/needs.hpp"
#include "cycle/same_files.hpp"
#include "engine/trainer_stand_in.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/digest.hpp"
#include "plan/planner.hpp"

namespace awex {
namespace {

/// Opening reads the headers of all files, maybe from slow storage.
void open_source(Job& job, Setup& setup, const RunOptions& options) {
  const auto opened = std::make_shared<std::unique_ptr<WeightSource>>();
  work::attend([opened, model = options.model,
                layers = options.layers] { *opened = open_model(model, layers); },
               {"reading the headers of the checkpoint", 0, 0}, options.timeout, job);
  setup.source = std::move(*opened);
}

void lay_out(Setup& setup, const RunOptions& options) {
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
      fmt::format("{} {:#x} {} {} {}", build_identity(), held.fingerprint(),
                  setup.trainer->describe(), setup.inference->describe(), setup.roles.per_role);
  setup.fingerprint = tensor_key(identity);
}

void check_same_model(Job& job, const Setup& setup) {
  const auto all = job.all_gather_value(setup.fingerprint, "the fingerprints of all ranks");
  const auto other = std::find_if(all.begin(), all.end(), [&](uint64_t f) { return f != all[0]; });
  if (other == all.end()) return;
  job.fail_together(request_error(
      fmt::format("rank 0 and rank {} do not read the same model", other - all.begin()),
      "give every rank the same --model and --layers"));
}

void plan(const Job& job, Setup& setup) {
  const auto& own = job.peers()[static_cast<size_t>(job.rank())];
  const auto& partner = job.peers()[static_cast<size_t>(setup.devices.partner)];
  const bool trains = own.role == Role::kTrainer;
  const uint32_t trainer = (trains ? own : partner).role_rank;
  const uint32_t inference = (trains ? partner : own).role_rank;
  setup.base_here = setup.trainer_base->rank_layout(trainer);
  setup.trainer_here = add_scales(setup.base_here, *setup.held);
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

/// What the pairs of ranks on a GPU need together, at least, and may have.
struct GpuNeeds {
  uint64_t peak = 0;
  std::string moment;  ///< Of the fullest pair.
  uint64_t pinned = 0;
  uint64_t free = std::numeric_limits<uint64_t>::max();
};

std::vector<GpuNeeds> needs_of_gpus(const Job& job, const Setup& setup, const RunOptions& options,
                                    const std::vector<DeviceNeeds>& needs,
                                    const std::vector<uint64_t>& free_bytes) {
  std::vector<GpuNeeds> gpus(static_cast<size_t>(setup.devices.gpus));
  for (const auto& peer : job.peers()) {
    auto& gpu = gpus[setup.devices.physical[static_cast<size_t>(peer.rank)]];
    gpu.free = std::min(gpu.free, free_bytes[static_cast<size_t>(peer.rank)]);
    if (peer.role != Role::kTrainer) continue;
    const auto& own = needs[setup.devices.placement.trainer_device[peer.role_rank]];
    const auto peak = peak_of_cycle(own, options.offload);
    gpu.peak = checked_add(gpu.peak, peak.bytes, "the memory of a GPU");
    gpu.moment = peak.moment;
    gpu.pinned += host_bytes_of_cycle(own, options.offload);
  }
  return gpus;
}

/// The least that the cycles on a GPU need must be there.
void check_budget(const Job& job, const Setup& setup, const RunOptions& options,
                  const std::vector<GpuNeeds>& gpus) {
  for (const auto& peer : job.peers()) {
    const auto& gpu = gpus[setup.devices.physical[static_cast<size_t>(peer.rank)]];
    const uint64_t budget = options.gpu_memory.value_or(gpu.free);
    if (gpu.peak <= std::min(budget, gpu.free)) continue;
    throw request_error(fmt::format("the GPU of {} needs {} in {}, and has {}", peer.describe(),
                                    format_bytes(gpu.peak), gpu.moment,
                                    budget < gpu.free ? format_bytes(budget) + " by --gpu-memory"
                                                      : format_bytes(gpu.free) + " free"),
                        options.offload
                            ? "spread the model over more GPUs, keep fewer --layers, or shrink "
                              "--kv-cache"
                            : "leave out --no-offload");
  }
}

/// What the ranks on a GPU may hold: as asked for, or what is free, less what the driver will take
/// for itself. Host memory serves all devices of a node, and their offloaded bytes.
uint64_t budget_of(const GpuNeeds& gpu, const RunOptions& options, BackendKind backend,
                   size_t gpus) {
  constexpr uint64_t kDriverBytes = 1ULL << 30;  // contexts, NCCL
  uint64_t spare = 0;
  switch (backend) {
    case BackendKind::kCuda:
      spare = gpu.free - std::min(gpu.free, kDriverBytes + page_table_bytes(gpu.pinned));
      break;
    case BackendKind::kHost:
      spare = gpu.free / 2 / gpus;
      break;
  }
  return std::max(gpu.peak, std::min(options.gpu_memory.value_or(spare), gpu.free));
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
    bytes += peak_of_cycle(needs[device], options.offload, setup.gpu_budget).bytes;
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
  check_places(job);
  check_common_options(job, command, options);
  setup.roles = assign_roles(job, options.role);
  job.do_and_agree([&] {
    open_source(job, setup, options);
    lay_out(setup, options);
  });
  check_same_model(job, setup);
  setup.fingerprint = mix64(setup.fingerprint ^ check_same_files(job, options.model, setup.source));
  // All ranks read the same, so one of them says what is to be said of it.
  if (job.rank() == 0) {
    for (const auto& remark : setup.source->remarks()) log::warning(remark);
  }
  setup.backend = choose_backend(job, options.backend);
  auto share = host_share(job);
  setup.host_threads = share.threads;
  setup.one_core_ranks = std::move(share.one_core_ranks);
  job.do_and_agree(
      [&] { setup.device = open_device(job, setup.roles, setup.backend, setup.host_threads); });
  setup.devices = pair_devices(job, setup.roles, *setup.device, options.share_gpu);
  const auto free_bytes = job.all_gather_value(setup.device->memory().free_bytes, "free memory");
  std::vector<DeviceNeeds> needs;
  job.do_and_agree([&] {
    plan(job, setup);
    needs = needs_of_devices(
        *setup.trainer_base, *setup.inference, *setup.held, setup.devices.placement,
        {options.optimizer, options.kv_cache_bytes, setup.plan.remote_bytes > 0});
    const auto gpus = needs_of_gpus(job, setup, options, needs, free_bytes);
    check_budget(job, setup, options, gpus);
    const auto& mine = gpus[setup.devices.physical[static_cast<size_t>(job.rank())]];
    setup.gpu_budget = budget_of(mine, options, setup.backend, gpus.size());
  });
  check_host_room(job, host_bytes_here(job, command, setup, options, needs));
  return setup;
}

void check_model_and_layouts(const RunOptions& options) {
  const auto model = read_model_shape(options.model, options.layers);
  const Catalogue held = held_catalogue(options.inference, model.catalogue);
  (void)make_trainer_layout(options.trainer, model.catalogue, 0);
  (void)make_inference_layout(options.inference, held, 0);
}

}  // namespace awex
