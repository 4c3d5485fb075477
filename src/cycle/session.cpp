#include "cycle/session.hpp"

#include <fmt/chrono.h>

#include <chrono>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>

#include "base/log.hpp"
#include "cycle/accounting.hpp"
#include "cycle/gpu_ledger.hpp"
#include "cycle/inference_member.hpp"
#include "cycle/phases.hpp"
#include "cycle/setup.hpp"
#include "cycle/trainer_member.hpp"
#include "cycle/weight_verifier.hpp"
#include "memory/link_limits.hpp"
#include "transfer/exchange.hpp"
#include "transfer/kernels.hpp"

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
    ledger_ = std::make_unique<GpuLedger>(job_, setup_.devices, setup_.gpu_budget);
    exchange_ = make_exchange(job_, *setup_.device, *kernels_, options_.share_gpu);
    if (options_.measure_limits) measure_limits();
    make_member();
    job_.set_phase("load");
    if (inference_) inference_->connect();
    if (trainer_) trainer_->load();
    if (command_ == Command::kUpdate || command_ == Command::kTransfer) map_trainer();
    phases_.take_baseline();
    job_.synchronise_clocks();
    run_phases();
  }

  [[nodiscard]] MemoryReport memory() const { return account_.report(); }

 private:
  using Steps = std::vector<Step>;

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
        bring_weights();
        break;
      case Command::kResume:
        begin_version(1);
        run(together({keeping(Tag::kWeights), keeping(Tag::kOptimizer)}));
        restore();
        break;
    }
    end_version();
  }

  void update(uint64_t version) {
    begin_version(version);
    bring_weights();
    if (options_.offload) {
      run(together({keeping(Tag::kWeights), taking(Tag::kKvCache)}));
      // Here inference generates with the new weights.
      run(together({discarding(Tag::kKvCache), discarding(Tag::kWeights)}));
      report_.poisoned = false;
      restore();
    } else {
      run(taking(Tag::kKvCache));
    }
    train();
    end_version();
  }

  /// While the trainer's optimizer state goes, inference takes its weights and brings them up to
  /// date.
  void bring_weights() {
    report_.poisoned = true;
    Steps trainer;
    Steps inference = together({taking(Tag::kWeights), transferring()});
    if (options_.verify != Verify::kOff) {
      trainer = digesting(Role::kTrainer);
      append(inference, digesting(Role::kInference));
    }
    if (lets_go()) {
      append(trainer, keeping(Tag::kOptimizer));
      append(inference, unmapping());
    }
    run(together({std::move(trainer), std::move(inference)}));
    if (options_.verify != Verify::kOff) verify();
    commit();
  }

  void offload_trainer() {
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
      auto steps = keeping(tag);
      if (has(tag) && options_.verify != Verify::kOff) {
        steps.push_back({{"verify", kTrainers, tag}, region(tag), [this, tag] {
                           return trainer_->check_backup(tag);
                         }});
      }
      run(steps);
    }
  }

  /// The trainer's memory comes back, and is what it was. As soon as its weights are there,
  /// inference maps them, so that the next transfer finds them ready.
  void restore() {
    auto steps = resuming(Tag::kWeights);
    if (command_ == Command::kUpdate) append(steps, mapping());
    append(steps, resuming(Tag::kOptimizer));
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) append(steps, checking(tag));
    run(steps);
  }

  /// The trainer's memory of a tag goes to host memory.
  [[nodiscard]] Steps keeping(Tag tag) {
    if (!has(tag)) return {};
    Steps steps;
    if (options_.verify != Verify::kOff) {
      steps.push_back(
          {{"record", kTrainers, tag}, region(tag), [this, tag] { return trainer_->record(tag); }});
    }
    steps.push_back({{"offload", kTrainers, tag, Link::kDeviceToHost}, region(tag), [this, tag] {
                       return trainer_->offload(tag);
                     }});
    return steps;
  }

  [[nodiscard]] Steps resuming(Tag tag) {
    if (!has(tag)) return {};
    return {{{"resume", kTrainers, tag, Link::kHostToDevice}, region(tag), [this, tag] {
               return trainer_->resume(tag);
             }}};
  }

  [[nodiscard]] Steps checking(Tag tag) {
    if (!has(tag) || options_.verify == Verify::kOff) return {};
    return {
        {{"verify", kTrainers, tag}, region(tag), [this, tag] { return trainer_->check(tag); }}};
  }

  [[nodiscard]] Steps taking(Tag tag) {
    if (!has(tag)) return {};
    return {
        {{"resume", kInference, tag}, region(tag), [this, tag] { return inference_->take(tag); }}};
  }

  [[nodiscard]] Steps discarding(Tag tag) {
    if (!has(tag)) return {};
    return {{{"discard", kInference, tag}, region(tag), [this, tag] {
               return inference_->discard(tag);
             }}};
  }

  [[nodiscard]] Steps transferring() {
    return {{{"transfer", kInference, Tag::kWeights, Link::kDeviceToDevice},
             region(Tag::kWeights),
             [this] { return inference_->transfer(); }}};
  }

  [[nodiscard]] Steps digesting(Role role) {
    return {{{"digest", role, Tag::kWeights}, region(Tag::kWeights), [this] {
               if (inference_ && options_.verify == Verify::kFull) wrong_ = inference_->compare();
               return verifier_->digest();
             }}};
  }

  [[nodiscard]] Steps mapping() {
    return {{{"map", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
               map_trainer();
               return 0;
             }}};
  }

  /// What another process has mapped does not become free when it is given back.
  [[nodiscard]] Steps unmapping() {
    return {{{"unmap", kInference, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
               inference_->unmap_trainer();
               return 0;
             }}};
  }

  /// Whether the trainer gives memory back in this run.
  [[nodiscard]] bool lets_go() const { return options_.offload || command_ == Command::kTransfer; }

  /// Every inference rank maps the weights of the trainer on its device. Collective.
  void map_trainer() {
    auto* offered = trainer_ ? &region(Tag::kWeights)->range() : nullptr;
    auto received = swap_handles(job_, offered, setup_.devices.partner, setup_.fingerprint);
    if (inference_) inference_->map_trainer(std::move(received));
  }

  void verify() {
    run({{{"verify", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
            verifier_->verify(wrong_, report_.versions.back().digest.emplace());
            return 0;
          }}});
  }

  /// Every rank has agreed that the version is right; the trainer's memory may go.
  void commit() {
    run({{{"commit", kEveryone, Tag::kWeights}, region(Tag::kWeights), []() -> uint64_t {
            return 0;
          }}});
    report_.versions.back().committed = true;
    report_.committed_version = report_.versions.back().version;
    report_.poisoned = false;
  }

  void train() {
    if (!options_.optimizer) return;
    run({{{"train", kTrainers, std::nullopt}, nullptr, [this] { return trainer_->train(); }}});
  }

  void run(const Steps& steps) {
    if (!steps.empty()) phases_.run(steps);
  }

  static void append(Steps& steps, Steps more) {
    std::move(more.begin(), more.end(), std::back_inserter(steps));
  }

  /// One list of several; each role goes through its own steps in this order.
  [[nodiscard]] static Steps together(std::vector<Steps> lists) {
    Steps steps;
    for (auto& list : lists) append(steps, std::move(list));
    return steps;
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
      inference_ = std::make_unique<InferenceMember>(
          job_, setup_, options_.kv_cache_bytes, ledger_->ledger(), *kernels_, *queue_, *exchange_);
    } else {
      trainer_ = std::make_unique<TrainerMember>(job_, setup_, options_.optimizer,
                                                 ledger_->ledger(), *kernels_, *queue_);
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
    sample.device_peak = ledger_->ledger().peak_bytes();
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
  std::unique_ptr<GpuLedger> ledger_;
  std::unique_ptr<Exchange> exchange_;  ///< On inference ranks.
  std::unique_ptr<TrainerMember> trainer_;
  std::unique_ptr<InferenceMember> inference_;
  std::unique_ptr<WeightVerifier> verifier_;
  std::optional<WrongElement> wrong_;  ///< What the last comparison of bytes found here.
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
    if (!job.failure_is_agreed()) static_cast<void>(session.release());
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
