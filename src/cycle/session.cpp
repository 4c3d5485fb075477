#include "cycle/session.hpp"

#include <fmt/chrono.h>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>

#include "base/log.hpp"
#include "cycle/accounting.hpp"
#include "cycle/inference_member.hpp"
#include "cycle/phases.hpp"
#include "cycle/setup.hpp"
#include "cycle/trainer_member.hpp"
#include "cycle/weight_verifier.hpp"
#include "layout/held_catalogue.hpp"
#include "memory/link_limits.hpp"
#include "transfer/exchange.hpp"
#include "transfer/kernels.hpp"
#include "transfer/scale_search.hpp"

namespace awex {
namespace {

constexpr std::optional<Role> kTrainers = Role::kTrainer;
constexpr std::optional<Role> kInference = Role::kInference;
constexpr std::optional<Role> kEveryone = std::nullopt;

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

/// One rank's part of a run: its engine, and the order of the phases.
class Session {
 public:
  /// Settles what the run is about; holds no memory and no work in flight yet. Collective.
  Session(Command command, const RunOptions& options, Job& job, CycleObserver& observer,
          Report& report)
      : command_(command),
        options_(options),
        job_(job),
        report_(report),
        setup_(prepare(job, command, options)),
        kernels_(make_kernels(*setup_.device, setup_.host_threads)),
        queue_(setup_.device->make_queue()),
        account_(setup_.backend, job.peers(), setup_.devices),
        phases_(
            job, observer, account_, [this] { return sample(); }, report) {
    describe_run();
  }

  /// Connects the ranks, takes the trainer's memory and runs the command. Collective. After a
  /// failure that is not agreed on, device work may be in flight: the session must then not be
  /// destroyed.
  void run() {
    exchange_ = make_exchange(job_, *setup_.device, *kernels_, options_.share_gpu);
    if (options_.measure_limits) measure_limits();
    make_member();
    if (trainer_ && options_.warm_host_memory) {
      trainer_->warm_up(offloaded_tags(command_, options_));
    }
    job_.set_phase("load");
    if (inference_) inference_->connect();
    if (trainer_) trainer_->load();
    phases_.take_baseline();
    job_.synchronise_clocks();
    run_phases();
  }

  [[nodiscard]] MemoryReport memory() const { return account_.report(); }

  /// Lets no further work begin that goes on beside the phases. Does not wait.
  void stop_background() {
    if (trainer_) trainer_->stop_warm_up();
  }

 private:
  void run_phases() {
    switch (command_) {
      case Command::kUpdate:
        for (uint64_t version = 1; version <= options_.versions; ++version) update(version);
        return;
      case Command::kOffload:
        begin_version(1);
        offload_trainer();
        break;
      case Command::kTransfer:
        begin_version(1);
        keep(Tag::kOptimizer);
        bring_weights();
        break;
      case Command::kResume:
        begin_version(1);
        keep(Tag::kWeights);
        keep(Tag::kOptimizer);
        restore(Tag::kWeights);
        restore(Tag::kOptimizer);
        break;
    }
    end_version();
  }

  void update(uint64_t version) {
    begin_version(version);
    if (options_.offload) {
      update_with_offload();
    } else {
      bring_weights();
      take(Tag::kKvCache);
    }
    train();
    end_version();
  }

  void update_with_offload() {
    keep(Tag::kOptimizer);
    bring_weights();
    keep(Tag::kWeights);
    take(Tag::kKvCache);
    // Here inference generates with the new weights.
    discard(Tag::kKvCache);
    discard(Tag::kWeights);
    restore(Tag::kWeights);
    restore(Tag::kOptimizer);
  }

  void bring_weights() {
    if (scales_) find_scales();
    take(Tag::kWeights);
    transfer();
    if (options_.verify != Verify::kOff) verify();
    commit();
  }

  void offload_trainer() {
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
      keep(tag);
      if (!has(tag) || options_.verify == Verify::kOff) continue;
      phases_.run({"verify", kTrainers, tag}, region(tag),
                  [&, tag] { return trainer_->check_backup(tag); });
    }
  }

  /// The trainer's memory of a tag goes to host memory.
  void keep(Tag tag) {
    if (!has(tag)) return;
    if (options_.verify != Verify::kOff) {
      phases_.run({"digest", kTrainers, tag}, region(tag), [&] { return trainer_->record(tag); });
    }
    phases_.run({"offload", kTrainers, tag, Link::kDeviceToHost}, region(tag),
                [&] { return trainer_->offload(tag); });
  }

  /// It comes back, and is what it was.
  void restore(Tag tag) {
    if (!has(tag)) return;
    phases_.run({"resume", kTrainers, tag, Link::kHostToDevice}, region(tag),
                [&] { return trainer_->resume(tag); });
    if (options_.verify == Verify::kOff) return;
    phases_.run({"verify", kTrainers, tag}, region(tag), [&] { return trainer_->check(tag); });
  }

  void take(Tag tag) {
    if (!has(tag)) return;
    if (tag == Tag::kWeights) report_.poisoned = true;
    phases_.run({"resume", kInference, tag}, region(tag), [&] { return inference_->take(tag); });
  }

  void discard(Tag tag) {
    if (!has(tag)) return;
    phases_.run({"discard", kInference, tag}, region(tag),
                [&] { return inference_->discard(tag); });
    if (tag == Tag::kWeights) report_.poisoned = false;
  }

  void transfer() {
    report_.poisoned = true;
    phases_.run({"transfer", kEveryone, Tag::kWeights, Link::kDeviceToDevice},
                region(Tag::kWeights), [&]() -> uint64_t {
                  auto* offered = trainer_ ? &region(Tag::kWeights)->range() : nullptr;
                  auto received =
                      swap_handles(job_, offered, setup_.devices.partner, setup_.fingerprint);
                  if (!inference_) return 0;
                  inference_->map_trainer(std::move(received));
                  return inference_->transfer();
                });
  }

  /// What is quantised on its way needs the scales of its blocks.
  void find_scales() {
    phases_.run({"scale", kEveryone, Tag::kWeights}, region(Tag::kWeights),
                [&] { return scales_->run(); });
  }

  void verify() {
    phases_.run({"verify", kEveryone, Tag::kWeights}, region(Tag::kWeights), [&] {
      std::optional<WrongElement> wrong;
      if (inference_ && options_.verify == Verify::kFull) wrong = inference_->compare();
      return verifier_->verify(wrong, report_.versions.back().digest.emplace());
    });
  }

  /// Every rank has agreed that the version is right; the trainer's memory is let go.
  void commit() {
    phases_.run({"commit", kEveryone, Tag::kWeights}, region(Tag::kWeights), [&]() -> uint64_t {
      if (inference_) inference_->unmap_trainer();
      return 0;
    });
    report_.versions.back().committed = true;
    report_.committed_version = report_.versions.back().version;
    report_.poisoned = false;
  }

  void train() {
    if (!options_.optimizer) return;
    phases_.run({"train", kTrainers, std::nullopt}, nullptr, [&] { return trainer_->train(); });
  }

  void begin_version(uint64_t version) {
    report_.versions.push_back({});
    report_.versions.back().version = version;
    version_start_ = job_.now();
  }

  void end_version() { report_.versions.back().seconds = job_.now() - version_start_; }

  /// Whether any rank of a role holds the tag; the same on every rank.
  [[nodiscard]] bool has(Tag tag) const {
    switch (tag) {
      case Tag::kWeights:
        return true;
      case Tag::kOptimizer:
        return options_.optimizer;
      case Tag::kKvCache:
        return options_.kv_cache_bytes > 0;
    }
    return false;
  }

  [[nodiscard]] Role role() const { return job_.peers()[static_cast<size_t>(job_.rank())].role; }

  /// This rank's own memory of a tag, if its role has such.
  [[nodiscard]] Region* region(Tag tag) {
    return trainer_ ? trainer_->region(tag) : inference_->region(tag);
  }

  void make_member() {
    if (role() == Role::kInference) {
      inference_ = std::make_unique<InferenceMember>(job_, setup_, options_.kv_cache_bytes,
                                                     *kernels_, *queue_, *exchange_);
    } else {
      trainer_ =
          std::make_unique<TrainerMember>(job_, setup_, options_.optimizer, *kernels_, *queue_);
    }
    const Catalogue& held = *setup_.held;
    if (model_tensors(held) < held.tensors().size()) {
      scales_ = std::make_unique<ScaleSearch>(
          job_, held, setup_.trainer_here, trainer_ ? region(Tag::kWeights)->data() : nullptr,
          shared_blocks(*setup_.trainer_base, held), *setup_.device, *kernels_, *queue_);
    }
    verifier_ =
        std::make_unique<WeightVerifier>(job_, setup_, *kernels_, region(Tag::kWeights)->data());
  }

  MemorySample sample() {
    MemorySample sample;
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
      const Region* memory = region(tag);
      if (memory == nullptr) continue;
      sample.held.at(static_cast<size_t>(tag)) = memory->held_bytes();
      sample.host.at(static_cast<size_t>(tag)) = memory->host_bytes();
    }
    if (inference_) sample.other_held = inference_->staging_bytes();
    sample.free_bytes = setup_.device->memory().free_bytes;
    return sample;
  }

  /// Trainers measure their devices' links while inference ranks wait; the mean is the limit.
  void measure_limits() {
    job_.set_phase("limits");
    LinkLimits mine;
    if (role() == Role::kTrainer) {
      mine = measure_link_limits(*setup_.device, job_.deadline(), job_,
                                 link_probe_bytes(setup_.backend));
    }
    const auto all = job_.all_gather_value(mine, "the limits of the links");
    LinkLimits sum;
    for (const auto& one : all) {
      sum.device_to_host += one.device_to_host;
      sum.host_to_device += one.host_to_device;
      sum.device_to_device += one.device_to_device;
    }
    const double devices = setup_.roles.per_role;
    report_.limits = {sum.device_to_host / devices, sum.host_to_device / devices,
                      sum.device_to_device / devices};
  }

  void describe_run() {
    const Catalogue& catalogue = setup_.catalogue();
    report_.backend = backend_name(setup_.backend);
    report_.model_name = catalogue.model_name();
    report_.model_tensors = catalogue.tensors().size();
    report_.model_bytes = catalogue.bytes();
    report_.trainer = setup_.trainer->describe();
    report_.inference = setup_.inference->describe();
    report_.gpus = setup_.devices.gpus;
    for (const auto& peer : job_.peers()) {
      report_.rank_infos.push_back({peer.rank, role_name(peer.role), peer.host,
                                    fmt::format("{} {}", peer.device.index, peer.device.name)});
    }
    report_.plan =
        PlanReport{setup_.plan_seconds, setup_.plan.total_pieces, setup_.plan.local_bytes,
                   setup_.plan.remote_bytes, setup_.plan.remote_bytes_lower_bound};
  }

  Command command_;
  const RunOptions& options_;
  Job& job_;
  Report& report_;
  Setup setup_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<CopyQueue> queue_;
  std::unique_ptr<Exchange> exchange_;  ///< On inference ranks.
  std::unique_ptr<TrainerMember> trainer_;
  std::unique_ptr<InferenceMember> inference_;
  std::unique_ptr<ScaleSearch> scales_;  ///< Where anything is quantised.
  std::unique_ptr<WeightVerifier> verifier_;
  MemoryAccount account_;
  PhaseRunner phases_;
  double version_start_ = 0;
};

/// Runs the session; what it measured gets into the report also when it fails.
void run_session(Command command, const RunOptions& options, Job& job, CycleObserver& observer,
                 Report& report) {
  auto session = std::make_unique<Session>(command, options, job, observer, report);
  try {
    session->run();
    report.memory = session->memory();
  } catch (...) {
    report.memory = session->memory();
    // The process is about to be aborted, maybe with work in flight on memory that freeing would
    // wait for, and a peer may still read it.
    if (!job.failure_is_agreed()) session.release()->stop_background();
    throw;
  }
}

}  // namespace

Report begin_report(Command command, const RunOptions& options, const Job& job) {
  Report report;
  report.command = command_name(command);
  report.started_at = utc_now();
  report.trainer = options.trainer;
  report.inference = options.inference;
  report.ranks = job.size();
  report.nodes = job.nodes();
  report.offload = options.offload;
  return report;
}

Report run_command(Command command, const RunOptions& options, Job& job, CycleObserver& observer) {
  Report report = begin_report(command, options, job);
  try {
    job.set_phase("setup");
    run_session(command, options, job, observer, report);
    job.set_phase("the end of the job");
    job.agree(nullptr);
    report.finished = true;
  } catch (const Error& error) {
    report.error = error;
  } catch (const std::exception& error) {
    report.error = runtime_error(error.what());
  }
  if (report.error && !job.failure_is_agreed()) {
    report.error = job.announce_failure(*report.error);
  }
  return report;
}

}  // namespace awex
