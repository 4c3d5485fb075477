#include "cycle/session.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/log.hpp"
#include "base/utc_now.hpp"
#include "memory/link_limits.hpp"

namespace awex {
namespace {

/// Whether a command makes a version.
bool brings_weights(Command command) {
  return command == Command::kUpdate || command == Command::kHandOver ||
         command == Command::kTransfer;
}

/// The setup; see Session.
Setup prepare_together(Job& job, const Request& request, const EngineFactory& engines) {
  try {
    return prepare(job, request, engines);
  } catch (const Error& error) {
    if (!job.is_resident() || job.failure_is_agreed()) throw;
    job.fail_together(job.recover(error));
  }
}

}  // namespace

Session::Session(const Request& request, Job& job, CycleObserver& observer, Report& report,
                 const EngineFactory& engines)
    : request_(request),
      options_(request.job),
      job_(job),
      observer_(observer),
      report_(report),
      engines_(engines),
      setup_(prepare_together(job, request, engines)),
      kernels_(make_kernels(*world().device, world().host_threads)),
      queue_(world().device->make_queue()),
      account_(world().backend, job.peers(), world().devices),
      phases_(
          job, observer, account_, [this] { return steps_->sample(); }, report) {
  describe_run();
}

void Session::start() {
  try {
    begin();
  } catch (const Error& error) {
    if (!job_.is_resident()) throw;
    const bool is_agreed = job_.failure_is_agreed();
    const Error cause = is_agreed ? error : job_.recover(error);
    stop_background();
    job_.do_and_agree([this] { end_device_work(); });
    job_.fail_together(cause);
  }
}

void Session::begin() {
  observer_.run_started(report_);
  ledger_ = std::make_unique<GpuLedger>(job_, world().devices, setup_.budget.gpu_bytes);
  connect();
  if (options_.measure_limits) measure_limits();
  steps_ = std::make_unique<CycleSteps>(job_, world(), setup_.roster, planned(), options_, engines_,
                                        ledger_->ledger(), *kernels_, *queue_, remote_.get());
  steps_->prove(request_.command.verify);
  if (options_.warm_host_memory) {
    steps_->warm_up(offloaded_tags(request_.command.command, options_));
  }
  job_.set_phase("load");
  job_.watch_progress([this](uint64_t done, uint64_t all) { observer_.loading(done, all); });
  const Command first = request_.command.command;
  steps_->load(/*with_mapping=*/brings_weights(first));
  phases_.take_baseline();
  job_.watch_progress(nullptr);
  observer_.loaded();
  conclude();
  job_.synchronise_clocks();
}

void Session::run(const CommandOptions& command) {
  running_ = command.command;
  all_consented_ = false;
  do_command(command);
  tell_over(std::nullopt);
}

/// The engines learn that the command is over, once, with its error if it failed.
void Session::tell_over(const std::optional<Error>& error) {
  const auto command = std::exchange(running_, std::nullopt);
  if (!command) return;
  steps_->command_over(
      {.is_hand_over = brings_weights(*command),
       .is_take_back = *command == Command::kTakeBack || *command == Command::kResume,
       .version = content().committed().value_or(0),
       .error = error,
       .all_consented = all_consented_});
}

void Session::do_command(const CommandOptions& command) {
  steps_->prove(command.verify);
  begin_version(brings_weights(command.command));
  run_steps({steps_->ready(command.command == Command::kTakeBack ? std::optional(command.taken_back)
                                                                 : std::nullopt)});
  all_consented_ = true;
  switch (command.command) {
    case Command::kUpdate:
      make_ready(command.command);
      for (uint64_t version = 1; version <= command.versions; ++version) {
        if (version > 1) begin_version(true);
        bring_weights(command, offload_of_optimizer());
        update();
        end_version();
      }
      return;
    case Command::kHandOver:
      hand_over(command);
      break;
    case Command::kTakeBack:
      take_back(command.taken_back);
      break;
    case Command::kOffload:
      offload(command.scope.value_or(Scope{.role = Role::kTrainer}));
      break;
    case Command::kTransfer:
      make_ready(command.command);
      bring_weights(command, offload_of_optimizer());
      break;
    case Command::kResume:
      if (command.scope) {
        resume(*command.scope);
        break;
      }
      make_ready(command.command);
      // A job that has given nothing over yet has nothing to take back.
      if (!std::exchange(has_given_over_, true)) {
        run_steps({steps_->offload(Tag::kWeights), steps_->offload(Tag::kOptimizer)});
      }
      restore();
      break;
  }
  end_version();
}

Error Session::recover(const Error& error) {
  Error cause = job_.recover(error);
  job_.set_phase("recovery");
  job_.do_and_agree([this] { end_device_work(); });
  if (remote_) remote_->rebuild();
  if (steps_) steps_->recover();
  job_.agree(nullptr);
  conclude();
  tell_over(cause);
  return cause;
}

/// Kernels that wait for a peer end here; nobody begins new ones before all are idle.
void Session::end_device_work() {
  if (remote_) remote_->abort(job_.deadline());
  kernels_->join();  // what was to join them may have failed
  kernels_->wait("the end of the failed command's work", job_.deadline(), job_);
  queue_->finish("the end of the failed command's copies", job_.deadline(), job_);
}

void Session::conclude() {
  report_.memory = account_.report();
  if (!steps_) return;
  report_.poisoned = content().state() == ContentState::kPoisoned;
  report_.committed_version = content().committed();
}

std::vector<RankStatus> Session::statuses() {
  auto status = steps_->status();
  status.leaked_bytes = account_.leaked_bytes(job_.rank());
  auto ranks = job_.all_gather_value(status, "the status of all ranks");
  if (setup_.roster.trainers) steps_->hear_of_trainers(ranks);
  return ranks;
}

std::vector<Holding> Session::holdings() {
  return job_.all_gather_value(steps_->holding(), "what the ranks hold");
}

void Session::attend() {
  if (steps_) steps_->attend();
}

EngineWish Session::wish() { return steps_ ? steps_->wish() : EngineWish::kNone; }

void Session::stop_background() {
  if (steps_) steps_->stop_warm_up();
}

/// Makes the remote copies, whose memory is booked like all other.
void Session::connect() {
  const bool needed = planned().plan.remote_bytes > 0;
  if (needed && role() == Role::kInference) {
    ledger_->ledger().reserve(kStagingBytes, "staging memory", job_.deadline(), job_);
  }
  remote_ = make_remote_copies(job_, *world().device, *kernels_, options_.exchange, needed,
                               options_.share_gpu);
}

/// Brings what a command needs into the state that it needs.
void Session::make_ready(Command command) {
  const auto ranks = holdings();
  const Preparation needed = preparation_for(command, ranks);
  if (needed.train_to > 0 && setup_.roster.trainers) refuse_unequal(ranks);
  prepare(needed);
}

void Session::prepare(const Preparation& needed) {
  const auto steps_if = [](bool is_needed, Steps steps) {
    return is_needed ? std::move(steps) : Steps{};
  };
  run_steps({steps_if(needed.unmap, steps_->unmap())});
  run_steps({steps_if(needed.discard_kv_cache, steps_->discard(Tag::kKvCache)),
             steps_if(needed.discard_weights, steps_->discard(Tag::kWeights))});
  run_steps({steps_if(needed.restore_optimizer, steps_->restore(Tag::kOptimizer)),
             steps_if(needed.restore_weights, steps_->restore(Tag::kWeights))});
  run_steps({steps_if(needed.train_to > 0, steps_->catch_up(needed.train_to))});
  run_steps({steps_if(needed.map, steps_->map())});
}

/// Engines that train for themselves must have come equally far.
void Session::refuse_unequal(const std::vector<Holding>& ranks) {
  std::vector<std::string> steps;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].role != Role::kTrainer) continue;
    steps.push_back(
        fmt::format("{} has taken {}", job_.describe(static_cast<int>(rank)), ranks[rank].trained));
  }
  job_.fail_together(runtime_error(
      fmt::format("the trainers have not taken equally many steps: {}", fmt::join(steps, ", ")),
      "let those that are behind train on, or attach them all anew from one checkpoint"));
}

/// The first half of an update, after which inference serves what the trainers hold. It generates
/// as soon as it has room, while most of the trainers' memory still leaves.
void Session::hand_over(const CommandOptions& command) {
  const bool trains = command.train && !setup_.roster.trainers;
  if (trains || !is_served_already()) {
    make_ready(trains ? Command::kUpdate : Command::kHandOver);
    if (trains) run_steps({steps_->train()});
    bring_weights(command, room_for_inference());
  } else if (options_.offload) {
    prepare(preparation_while_serving(holdings()));
    run_steps({room_for_inference()});
  }
  has_given_over_ = true;
  std::vector<Steps> lists{steps_->take(Tag::kKvCache),
                           steps_->serve({.is_hand_over = true,
                                          .is_take_back = false,
                                          .version = report_.versions.back().version})};
  if (options_.offload) {
    lists.push_back(steps_->offload(Tag::kOptimizer));
    lists.push_back(steps_->offload(Tag::kWeights));
  }
  run_steps(std::move(lists));
}

/// What the trainers do beside a transfer that nobody waits to generate after.
Steps Session::offload_of_optimizer() {
  return options_.offload ? steps_->offload(Tag::kOptimizer) : Steps{};
}

/// What they do beside one that inference waits for.
Steps Session::room_for_inference() {
  if (!options_.offload) return {};
  return steps_->offload(Tag::kOptimizer, bytes_to_make_room(holdings(), world().devices.physical));
}

/// Whether inference serves what the trainers hold without another transfer: then the version is
/// that one.
bool Session::is_served_already() {
  if (content().state() != ContentState::kCommitted) return false;
  if (!serves_what_trainers_hold(holdings())) return false;
  auto& version = report_.versions.back();
  version.version = content().committed().value();
  version.committed = true;
  return true;
}

/// The second half, after which the trainers have what they take back of their memory, and their
/// weights are mapped for the next transfer.
/// Memory that is given back is cleared by the driver, with the engine that copies to the GPU:
/// where there is room for all of the trainers', it comes first, and they do not wait for the rest.
void Session::take_back(TakenBack what) {
  if (!options_.offload) return;
  const auto ranks = holdings();
  if (has_room_for_trainers(ranks, world().devices.physical)) {
    prepare(preparation_to_train(ranks, what));
    steps_->let_trainer_go_on({.is_hand_over = false,
                               .is_take_back = true,
                               .version = content().committed().value_or(0)});
    if (setup_.roster.trainers) account_.others_were_at_work();
  }
  make_ready(Command::kTakeBack);
  prepare(preparation_to_train(holdings(), what));
}

/// The memory of a scope goes: the trainers' to host memory, inference's for good.
void Session::offload(const Scope& scope) {
  has_given_over_ = true;
  make_ready(Command::kOffload);
  for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
    if (!scope.has(Role::kTrainer, tag)) continue;
    run_steps({steps_->offload(tag), steps_->check_backup(tag)});
  }
  for (const Tag tag : {Tag::kKvCache, Tag::kWeights}) {
    if (scope.has(Role::kInference, tag)) run_steps({steps_->discard(tag)});
  }
}

/// The memory of a scope comes: the trainers' with its bytes, inference's with none.
void Session::resume(const Scope& scope) {
  for (const Tag tag : {Tag::kOptimizer, Tag::kWeights}) {
    if (scope.has(Role::kTrainer, tag)) run_steps({steps_->restore(tag)});
  }
  for (const Tag tag : {Tag::kWeights, Tag::kKvCache}) {
    if (scope.has(Role::kInference, tag)) run_steps({steps_->take(tag)});
  }
}

/// What follows the commit of an update.
void Session::update() {
  if (options_.offload) {
    run_steps({steps_->offload(Tag::kWeights), steps_->take(Tag::kKvCache)});
    // Here inference generates with the new weights.
    run_steps({steps_->discard(Tag::kKvCache), steps_->discard(Tag::kWeights)});
    restore();
    // The next transfer finds them ready.
    run_steps({steps_->map()});
  } else {
    run_steps({steps_->take(Tag::kKvCache)});
  }
  run_steps({steps_->train()});
}

/// While `leaving` of the trainers goes, inference takes its weights and brings them up to date.
void Session::bring_weights(const CommandOptions& command, Steps leaving) {
  has_given_over_ = true;
  auto& version = report_.versions.back();
  run_steps({steps_->scale()});
  std::vector<Steps> trainer{steps_->digest()};
  std::vector<Steps> inference{steps_->take(Tag::kWeights), steps_->transfer(), steps_->compare()};
  trainer.push_back(std::move(leaving));
  if (options_.offload) inference.push_back(steps_->unmap());
  run_steps({together(std::move(trainer)), together(std::move(inference))});
  if (command.verify != Verify::kOff) run_steps({steps_->verify(version.digest)});
  run_steps({steps_->commit(version.version)});
  version.committed = true;
}

/// The trainer's memory comes back. Weights come last: after much of a GPU's memory was given back,
/// the driver clears it with the engine that copies to the GPU, which is felt least in the larger
/// part.
void Session::restore() {
  run_steps({steps_->restore(Tag::kOptimizer), steps_->restore(Tag::kWeights)});
}

void Session::run_steps(std::vector<Steps> lists) {
  const auto steps = together(std::move(lists));
  if (!steps.empty()) phases_.run(steps);
}

/// A command that brings weights makes the version after the last that was committed; what others
/// do is told with that last one.
void Session::begin_version(bool is_new) {
  const uint64_t last = content().committed().value_or(0);
  report_.versions.push_back({});
  report_.versions.back().version = is_new ? last + 1 : std::max<uint64_t>(last, 1);
  report_.versions.back().committed = !is_new && content().state() == ContentState::kCommitted;
  version_start_ = job_.now();
}

void Session::end_version() {
  report_.versions.back().seconds = job_.now() - version_start_;
  conclude();
  observer_.version_finished(report_);
}

/// Trainers measure their devices' links while inference ranks wait; the mean is the limit.
void Session::measure_limits() {
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

void Session::describe_run() {
  const Catalogue& catalogue = planned().model.catalogue();
  report_.backend = backend_name(world().backend);
  report_.model_name = catalogue.model_name();
  report_.model_tensors = catalogue.tensors().size();
  report_.model_bytes = catalogue.bytes();
  report_.trainer = planned().model.trainer->describe();
  report_.inference = planned().model.inference->describe();
  report_.notes = planned().model.inference->notes();
  report_.gpus = world().devices.gpus;
  if (setup_.roster.any()) {
    report_.admission = !setup_.roster.inference         ? "not asked"
                        : setup_.roster.admits_by_digest ? "digest"
                                                         : "off";
  }
  report_.one_core_ranks = world().one_core_ranks;
  for (const auto& peer : job_.peers()) {
    report_.rank_infos.push_back({peer.rank, role_name(peer.role), peer.node.name(),
                                  fmt::format("{} {}", peer.device.index, peer.device.name)});
  }
  report_.plan =
      PlanReport{planned().plan_seconds, planned().plan.total_pieces, planned().plan.local_bytes,
                 planned().plan.remote_bytes, planned().plan.remote_bytes_lower_bound};
}

namespace {

/// Runs the session; what it measured gets into the report also when it fails.
void run_session(const Request& request, Job& job, CycleObserver& observer,
                 const EngineFactory& engines, Report& report) {
  auto session = std::make_unique<Session>(request, job, observer, report, engines);
  try {
    session->start();
    session->run(request.command);
    session->conclude();
  } catch (...) {
    job.watch_progress(nullptr);
    session->conclude();
    // The process is about to be aborted, maybe with work in flight on memory that freeing would
    // wait for, and a peer may still read it. (A job that goes on recovers its session.)
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

Report run_command(const Request& request, Job& job, CycleObserver& observer,
                   const EngineFactory& engines) {
  Report report = begin_report(request, job);
  try {
    job.set_phase("setup");
    run_session(request, job, observer, engines, report);
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
