#pragma once

#include <memory>
#include <vector>

#include "comm/job.hpp"
#include "cycle/accounting.hpp"
#include "cycle/gpu_ledger.hpp"
#include "cycle/observer.hpp"
#include "cycle/options.hpp"
#include "cycle/phases.hpp"
#include "cycle/rank_status.hpp"
#include "cycle/report.hpp"
#include "cycle/setup.hpp"
#include "cycle/steps.hpp"
#include "engine/engine.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {

/// One rank's part of a job: its engine, and the order of the phases of every command. All calls
/// are collective over all ranks of the job.
class Session {
 public:
  /// Of a resident job, the constructor and `start` fail on all ranks alike, with the first cause,
  /// agreed, unless the job cannot recover: nothing is in flight then, and the session may be
  /// destroyed. A start cannot be made again.
  ///
  /// Settles what the job is about; holds no memory and no work in flight yet. All references must
  /// outlive the session; `report` gains a version for each that a command makes.
  Session(const Request& request, Job& job, CycleObserver& observer, Report& report,
          const EngineFactory& engines);

  /// Connects the ranks and takes the trainer's memory. After a failure of this or of `run` that is
  /// not agreed on, device work may be in flight: the session must then not be destroyed before
  /// it has recovered.
  void start();
  /// Runs a command. Commands may come in any order: each first brings what it needs into the state
  /// that it needs (cycle/readiness.hpp). A version has the number after the last that was
  /// committed.
  void run(const CommandOptions& command);

  /// After a failure of `run`, on every rank: ends what it has left under way, on the device and
  /// between ranks, and comes to states from which commands can begin; the next one brings the rest
  /// into the state that it needs. Returns the first cause, as Job::recover, and throws as that
  /// does. Whatever else it throws can be recovered from by calling it again.
  [[nodiscard]] Error recover(const Error& error);

  /// Lets an engine come in place of one that was lost. To be called at rest; not collective.
  void attend();
  /// The command that this rank's engine waits for; not collective.
  [[nodiscard]] EngineWish wish();
  /// Whether any role is played by engines that attach.
  [[nodiscard]] bool has_attached() const { return setup_.roster.any(); }

  /// What every rank holds now, by rank; after `start`.
  [[nodiscard]] std::vector<RankStatus> statuses();
  /// Of inference's weights; after `start`.
  [[nodiscard]] const Content& content() const { return steps_->content(); }

  /// Brings the report up to date with memory and content, also after a failure.
  void conclude();
  /// Lets no further work begin that goes on beside the phases. Does not wait.
  void stop_background();

 private:
  void begin();
  void do_command(const CommandOptions& command);
  void tell_over(const std::optional<Error>& error);
  void refuse_unequal(const std::vector<Holding>& ranks);
  void end_device_work();
  void connect();
  void measure_limits();
  void describe_run();
  void make_ready(Command command);
  void prepare(const Preparation& needed);
  void hand_over(const CommandOptions& command);
  [[nodiscard]] bool is_served_already();
  void take_back(TakenBack what);
  void offload(const Scope& scope);
  void resume(const Scope& scope);
  void update();
  [[nodiscard]] Steps offload_of_optimizer();
  [[nodiscard]] Steps room_for_inference();
  void bring_weights(const CommandOptions& command, Steps leaving);
  void restore();
  void run_steps(std::vector<Steps> lists);
  void begin_version(bool is_new);
  void end_version();

  [[nodiscard]] std::vector<Holding> holdings();
  [[nodiscard]] const World& world() const { return setup_.world; }
  [[nodiscard]] const HandOver& planned() const { return setup_.hand_over; }
  [[nodiscard]] Role role() const { return job_.peers()[static_cast<size_t>(job_.rank())].role; }

  const Request& request_;
  const JobOptions& options_;
  Job& job_;
  CycleObserver& observer_;
  Report& report_;
  const EngineFactory& engines_;
  Setup setup_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<CopyQueue> queue_;
  std::unique_ptr<GpuLedger> ledger_;
  std::unique_ptr<RemoteCopies> remote_;  ///< On inference ranks.
  std::unique_ptr<CycleSteps> steps_;
  MemoryAccount account_;
  PhaseRunner phases_;
  bool has_given_over_ = false;     ///< Some of the trainer's memory, at least once.
  std::optional<Command> running_;  ///< Whose end the engines have not been told,
  bool all_consented_ = false;      ///< and whether they had consented to it.
  double version_start_ = 0;
};

/// What is known of a run before it has done anything.
[[nodiscard]] Report begin_report(const Request& request, const Job& job);

/// Runs a request on this rank and returns what happened: complete on rank 0, with the same `error`
/// on every rank that lives. Never throws an Error. `engines` play the roles. Collective over all
/// ranks of the job.
[[nodiscard]] Report run_command(const Request& request, Job& job, CycleObserver& observer,
                                 const EngineFactory& engines = built_in_engines());

}  // namespace awex
