#include "cycle/setup.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/log.hpp"
#include "base/work_progress.hpp"
#include "cycle/common_options.hpp"
#include "cycle/host_room.hpp"
#include "cycle/needs.hpp"
#include "cycle/same_files.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

/// Opening reads the headers of all files, maybe from slow storage.
std::unique_ptr<WeightSource> open_source(Job& job, const JobOptions& options) {
  const auto opened = std::make_shared<std::unique_ptr<WeightSource>>();
  work::attend([opened, model = options.model,
                layers = options.layers] { *opened = open_model(model, layers); },
               {"reading the headers of the checkpoint", 0, 0}, options.timeout, job);
  return std::move(*opened);
}

void check_same_model(Job& job, uint64_t fingerprint) {
  const auto all = job.all_gather_value(fingerprint, "the fingerprints of all ranks");
  const auto other = std::find_if(all.begin(), all.end(), [&](uint64_t f) { return f != all[0]; });
  if (other == all.end()) return;
  job.fail_together(request_error(
      fmt::format("rank 0 and rank {} do not read the same model", other - all.begin()),
      "give every rank the same --model and --layers"));
}

/// Reads and lays out what all ranks must find the same. Collective.
HeldModel read_model(Job& job, const JobOptions& options, uint32_t ranks) {
  HeldModel model;
  job.do_and_agree([&] {
    model = hold_model(open_source(job, options), options.trainer, options.inference, ranks);
  });
  check_same_model(job, model.fingerprint);
  model.fingerprint = mix64(model.fingerprint ^ check_same_files(job, options.model, model.source));
  // All ranks read the same, so one of them says what is to be said of it.
  if (job.rank() == 0) {
    for (const auto& remark : model.source->remarks()) log::warning(remark);
  }
  return model;
}

/// Of this rank's device.
DevicePair pair_here(const Job& job, const World& world) {
  const auto& own = job.peers()[static_cast<size_t>(job.rank())];
  const auto& partner = job.peers()[static_cast<size_t>(world.devices.partner)];
  return own.role == Role::kTrainer ? DevicePair{own.role_rank, partner.role_rank}
                                    : DevicePair{partner.role_rank, own.role_rank};
}

std::vector<GpuNeeds> needs_of_gpus(const Job& job, const DeviceMap& devices, bool offload,
                                    const std::vector<DeviceNeeds>& needs,
                                    const std::vector<uint64_t>& free_bytes) {
  std::vector<GpuNeeds> gpus(static_cast<size_t>(devices.gpus));
  for (const auto& peer : job.peers()) {
    auto& gpu = gpus[devices.physical[static_cast<size_t>(peer.rank)]];
    gpu.free = std::min(gpu.free, free_bytes[static_cast<size_t>(peer.rank)]);
    if (peer.role != Role::kTrainer) continue;
    gpu.add(needs[devices.placement.trainer_device[peer.role_rank]], offload);
  }
  return gpus;
}

/// What this rank will hold of host memory when it offloads these tags.
uint64_t host_bytes_here(const Job& job, const World& world, const JobOptions& options,
                         const std::vector<Tag>& offloaded, const DeviceNeeds& needs,
                         uint64_t gpu_bytes) {
  if (job.peers()[static_cast<size_t>(job.rank())].role != Role::kTrainer) return 0;
  uint64_t bytes = 0;
  for (const Tag tag : offloaded) {
    bytes += tag == Tag::kOptimizer ? needs.optimizer : needs.trainer_weights;
  }
  if (world.backend == BackendKind::kHost) {
    bytes += peak_of_cycle(needs, options.offload, gpu_bytes).bytes;
  }
  return bytes;
}

/// What the engines of a role ask for, by role rank; nothing where they are built in.
std::vector<EngineNeeds> asked_by(const Job& job, const Roster& roster, Role role) {
  std::vector<EngineNeeds> asked;
  if (!roster.attaches(role)) return asked;
  for (const auto& peer : job.peers()) {
    if (peer.role != role) continue;
    if (asked.size() <= peer.role_rank) asked.resize(peer.role_rank + 1);
    asked[peer.role_rank] = roster.of(peer.rank);
  }
  return asked;
}

/// Where inference is admitted by what it has loaded, that lies beside all that trainers hold.
void add_admission(const Job& job, const DeviceMap& devices, const std::vector<DeviceNeeds>& needs,
                   std::vector<GpuNeeds>& gpus) {
  std::vector<uint64_t> bytes(gpus.size(), 0);
  for (const auto& peer : job.peers()) {
    if (peer.role != Role::kTrainer) continue;
    const auto& pair = needs[devices.placement.trainer_device[peer.role_rank]];
    for (const uint64_t held :
         {pair.trainer_weights, pair.optimizer, pair.inference_weights, pair.staging}) {
      bytes[devices.physical[static_cast<size_t>(peer.rank)]] += held_bytes_for(held);
    }
  }
  for (size_t gpu = 0; gpu < gpus.size(); ++gpu) {
    if (bytes[gpu] <= gpus[gpu].peak) continue;
    gpus[gpu].peak = bytes[gpu];
    gpus[gpu].moment = "the admission (which --admission off leaves out)";
  }
}

/// Refuses what cannot be held. Not collective; the same verdict on every rank.
Budget make_budget(const Job& job, const World& world, const Roster& roster,
                   const HandOver& hand_over, const JobOptions& options,
                   const std::vector<Tag>& offloaded, const std::vector<uint64_t>& free_bytes) {
  const auto& model = hand_over.model;
  const auto& devices = world.devices;
  const auto needs = needs_of_devices(
      *model.trainer_base, *model.inference, *model.held, devices.placement,
      {options.optimizer, options.kv_cache_bytes, hand_over.plan.remote_bytes > 0,
       asked_by(job, roster, Role::kTrainer), asked_by(job, roster, Role::kInference)});
  auto gpus = needs_of_gpus(job, devices, options.offload, needs, free_bytes);
  if (roster.admits_by_digest) add_admission(job, devices, needs, gpus);
  const BudgetRequest request{options.gpu_memory, options.offload};
  for (const auto& peer : job.peers()) {
    const auto& gpu = gpus[devices.physical[static_cast<size_t>(peer.rank)]];
    if (auto lack = lack_of_memory(gpu, request, peer.describe())) throw std::move(*lack);
  }
  Budget budget;
  const auto& mine = gpus[devices.physical[static_cast<size_t>(job.rank())]];
  budget.gpu_bytes = gpu_budget(mine, request, world.backend, gpus.size());
  const auto device = devices.placement.trainer_device[pair_here(job, world).trainer];
  budget.host_bytes =
      host_bytes_here(job, world, options, offloaded, needs[device], budget.gpu_bytes);
  return budget;
}

}  // namespace

std::vector<Tag> offloaded_tags(Command command, const JobOptions& options) {
  std::vector<Tag> tags;
  if (!options.offload) return tags;
  if (options.optimizer) tags.push_back(Tag::kOptimizer);
  if (command != Command::kTransfer) tags.push_back(Tag::kWeights);
  return tags;
}

Setup prepare(Job& job, const Request& request, const EngineFactory& engines) {
  const JobOptions& options = request.job;
  check_places(job);
  check_common_options(job, request);
  RoleMap roles = assign_roles(job, options.role);
  HeldModel model = read_model(job, options, roles.per_role);
  Setup setup;
  setup.world = open_world(job, std::move(roles), options);
  setup.roster = call_roster(job, engines, setup.world.roles.node_position, *setup.world.device);
  const auto free_bytes =
      job.all_gather_value(setup.world.device->memory().free_bytes, "free memory");
  job.do_and_agree([&] {
    const DevicePair here = pair_here(job, setup.world);
    setup.hand_over = plan_hand_over(std::move(model), setup.world.devices.placement, here);
    const Role role = job.peers()[static_cast<size_t>(job.rank())].role;
    if (role == Role::kInference) prove_hand_over(setup.hand_over, here.inference);
    setup.budget = make_budget(job, setup.world, setup.roster, setup.hand_over, options,
                               offloaded_tags(request.command.command, options), free_bytes);
  });
  check_host_room(job, setup.budget.host_bytes);
  return setup;
}

void check_model_and_layouts(const JobOptions& options) {
  const auto model = read_model_shape(options.model, options.layers);
  const Catalogue held = held_catalogue(options.inference, model.catalogue);
  (void)make_trainer_layout(options.trainer, model.catalogue, 0);
  (void)make_inference_layout(options.inference, held, 0);
}

}  // namespace awex
