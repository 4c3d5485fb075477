#include "cycle/session.hpp"

#include <fmt/chrono.h>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>

#include "base/log.hpp"
#include "cycle/accounting.hpp"
#include "cycle/gpu_ledger.hpp"
#include "cycle/phases.hpp"
#include "cycle/setup.hpp"
#include "cycle/steps.hpp"
#include "memory/link_limits.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {
namespace {

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

/// One rank's part of a run: its engine, and the order of the phases.
class Session {
 public:
  /// Settles what the run is about; holds no memory and no work in flight yet. Collective.
  Session(const Request& request, Job& job, CycleObserver& observer, Report& report)
      : request_(request),
        options_(request.job),
        job_(job),
        observer_(observer),
        report_(report),
        setup_(prepare(job, request)),
        kernels_(make_kernels(*world().device, world().host_threads)),
        queue_(world().device->make_queue()),
        account_(world().backend, job.peers(), world().devices),
        phases_(
            job, observer, account_, [this] { return steps_->sample(); }, report) {
    describe_run();
  }

  /// Connects the ranks, takes the trainer's memory and runs the command. Collective. After a
  /// failure that is not agreed on, device work may be in flight: the session must then not be
  /// destroyed.
  void run() {
    observer_.run_started(report_);
    ledger_ = std::make_unique<GpuLedger>(job_, world().devices, setup_.budget.gpu_bytes);
    connect();
    if (options_.measure_limits) measure_limits();
    steps_ = std::make_unique<CycleSteps>(job_, world(), hand_over(), request_, ledger_->ledger(),
                                          *kernels_, *queue_, remote_.get());
    if (options_.warm_host_memory) steps_->warm_up(offloaded_tags(command(), options_));
    job_.set_phase("load");
    job_.watch_progress([this](uint64_t done, uint64_t all) { observer_.loading(done, all); });
    steps_->load(transfers());
    phases_.take_baseline();
    job_.watch_progress(nullptr);
    observer_.loaded();
    job_.synchronise_clocks();
    run_phases();
  }

  [[nodiscard]] MemoryReport memory() const { return account_.report(); }

  /// Lets no further work begin that goes on beside the phases. Does not wait.
  void stop_background() {
    if (steps_) steps_->stop_warm_up();
  }

 private:
  /// Makes the remote copies, whose memory is booked like all other.
  void connect() {
    const bool needed = hand_over().plan.remote_bytes > 0;
    if (needed && role() == Role::kInference) {
      ledger_->ledger().reserve(kStagingBytes, "staging memory", job_.deadline(), job_);
    }
    remote_ = make_remote_copies(job_, *world().device, *kernels_, options_.exchange, needed,
                                 options_.share_gpu);
  }

  void run_phases() {
    switch (command()) {
      case Command::kUpdate:
        for (uint64_t version = 1; version <= request_.command.versions; ++version) update(version);
        return;
      case Command::kOffload:
        begin_version(1);
        for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
          run({steps_->offload(tag), steps_->check_backup(tag)});
        }
        break;
      case Command::kTransfer:
        begin_version(1);
        bring_weights();
        break;
      case Command::kResume:
        begin_version(1);
        run({steps_->offload(Tag::kWeights), steps_->offload(Tag::kOptimizer)});
        restore();
        break;
    }
    end_version();
  }

  void update(uint64_t version) {
    begin_version(version);
    bring_weights();
    if (options_.offload) {
      run({steps_->offload(Tag::kWeights), steps_->take(Tag::kKvCache)});
      // Here inference generates with the new weights.
      run({steps_->discard(Tag::kKvCache), steps_->discard(Tag::kWeights)});
      restore();
    } else {
      run({steps_->take(Tag::kKvCache)});
    }
    run({steps_->train()});
    end_version();
  }

  /// While the trainer's optimizer state goes, inference takes its weights and brings them up to
  /// date.
  void bring_weights() {
    report_.poisoned = true;
    run({steps_->scale()});
    std::vector<Steps> trainer{steps_->digest()};
    std::vector<Steps> inference{steps_->take(Tag::kWeights), steps_->transfer(),
                                 steps_->compare()};
    if (options_.offload) {
      trainer.push_back(steps_->offload(Tag::kOptimizer));
      inference.push_back(steps_->unmap());
    }
    run({together(std::move(trainer)), together(std::move(inference))});
    if (request_.command.verify != Verify::kOff) {
      run({steps_->verify(report_.versions.back().digest)});
    }
    run({steps_->commit()});
    report_.versions.back().committed = true;
    report_.committed_version = report_.versions.back().version;
    report_.poisoned = false;
  }

  /// The trainer's memory comes back. Weights come last: after much of a GPU's memory was given
  /// back, the driver clears it with the engine that copies to the GPU, which is felt least in the
  /// larger part. Then inference maps the weights, so that the next transfer finds them ready.
  void restore() {
    run({steps_->restore(Tag::kOptimizer), steps_->restore(Tag::kWeights)});
    if (transfers()) run({steps_->map()});
  }

  [[nodiscard]] bool transfers() const {
    return command() == Command::kUpdate || command() == Command::kTransfer;
  }

  void run(std::vector<Steps> lists) {
    const auto steps = together(std::move(lists));
    if (!steps.empty()) phases_.run(steps);
  }

  void begin_version(uint64_t version) {
    report_.versions.push_back({});
    report_.versions.back().version = version;
    version_start_ = job_.now();
  }

  void end_version() {
    report_.versions.back().seconds = job_.now() - version_start_;
    report_.memory = account_.report();
    observer_.version_finished(report_);
  }

  [[nodiscard]] const World& world() const { return setup_.world; }
  [[nodiscard]] const HandOver& hand_over() const { return setup_.hand_over; }
  [[nodiscard]] Command command() const { return request_.command.command; }
  [[nodiscard]] Role role() const { return job_.peers()[static_cast<size_t>(job_.rank())].role; }

  /// Trainers measure their devices' links while inference ranks wait; the mean is the limit.
  void measure_limits() {
    job_.set_phase("limits");
    LinkLimits mine;
    if (role() == Role::kTrainer) {
      mine = measure_link_limits(*world().device, job_.deadline(), job_,
                                 link_probe_bytes(world().backend));
    }
    const auto all = job_.all_gather_value(mine, "the limits of the links");
    LinkLimits sum;
    for (const auto& one : all) {
      sum.device_to_host += one.device_to_host;
      sum.host_to_device += one.host_to_device;
      sum.device_to_device += one.device_to_device;
    }
    const double devices = world().roles.per_role;
    report_.limits = {sum.device_to_host / devices, sum.host_to_device / devices,
                      sum.device_to_device / devices};
  }

  void describe_run() {
    const Catalogue& catalogue = hand_over().model.catalogue();
    report_.backend = backend_name(world().backend);
    report_.model_name = catalogue.model_name();
    report_.model_tensors = catalogue.tensors().size();
    report_.model_bytes = catalogue.bytes();
    report_.trainer = hand_over().model.trainer->describe();
    report_.inference = hand_over().model.inference->describe();
    report_.notes = hand_over().model.inference->notes();
    report_.gpus = world().devices.gpus;
    report_.one_core_ranks = world().one_core_ranks;
    for (const auto& peer : job_.peers()) {
      report_.rank_infos.push_back({peer.rank, role_name(peer.role), peer.node.name(),
                                    fmt::format("{} {}", peer.device.index, peer.device.name)});
    }
    report_.plan = PlanReport{hand_over().plan_seconds, hand_over().plan.total_pieces,
                              hand_over().plan.local_bytes, hand_over().plan.remote_bytes,
                              hand_over().plan.remote_bytes_lower_bound};
  }

  const Request& request_;
  const JobOptions& options_;
  Job& job_;
  CycleObserver& observer_;
  Report& report_;
  Setup setup_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<CopyQueue> queue_;
  std::unique_ptr<GpuLedger> ledger_;
  std::unique_ptr<RemoteCopies> remote_;  ///< On inference ranks.
  std::unique_ptr<CycleSteps> steps_;
  MemoryAccount account_;
  PhaseRunner phases_;
  double version_start_ = 0;
};

/// Runs the session; what it measured gets into the report also when it fails.
void run_session(const Request& request, Job& job, CycleObserver& observer, Report& report) {
  auto session = std::make_unique<Session>(request, job, observer, report);
  try {
    session->run();
    report.memory = session->memory();
  } catch (...) {
    job.watch_progress(nullptr);
    report.memory = session->memory();
    // The process is about to be aborted, maybe with work in flight on memory that freeing would
    // wait for, and a peer may still read it.
    if (!job.failure_is_agreed()) session.release()->stop_background();
    throw;
  }
}

}  // namespace

Report begin_report(const Request& request, const Job& job) {
  Report report;
  report.command = command_name(request.command.command);
  report.started_at = utc_now();
  report.trainer = request.job.trainer.text();
  report.inference = request.job.inference.text();
  report.ranks = job.size();
  report.nodes = job.nodes();
  report.offload = request.job.offload;
  return report;
}

Report run_command(const Request& request, Job& job, CycleObserver& observer) {
  Report report = begin_report(request, job);
  try {
    job.set_phase("setup");
    run_session(request, job, observer, report);
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
