#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/log_fact.hpp"
#include "comm/job.hpp"
#include "cycle/observer.hpp"
#include "cycle/options.hpp"
#include "cycle/report.hpp"
#include "cycle/session.hpp"
#include "engine/engine.hpp"
#include "serve/doorman.hpp"
#include "serve/job_directory.hpp"
#include "serve/job_status.hpp"

namespace awex {

namespace attach {
class AttachedEngines;
}

/// Which roles are played by engines that attach to the job, and how. The same on every rank.
struct AttachOptions {
  bool trainer = false;
  bool inference = false;
  bool admits_by_digest = true;  ///< What inference has loaded is proven before the first transfer.
  Seconds patience{600};         ///< For engines to come and to say what they hold.

  [[nodiscard]] bool any() const { return trainer || inference; }
};

/// What a user asks of a resident job. The same on every rank but for `job.role`.
struct ServeOptions {
  std::string directory;  ///< That names the job.
  JobOptions job;
  AttachOptions attach{};
};

/// How a resident job's rank 0 speaks. Nothing may be null.
struct ResidentVoice {
  /// A line of the job's log, and what it is about.
  std::function<void(const std::string& line, const log::Fact& fact)> log;
  std::function<std::string(const Report&, const Rendering&)> table;
  std::function<std::string(const Report&)> json;
  std::function<std::string(const Report&)> trace;
  /// A command has ended (`ran`), or something failed between commands.
  std::function<void(const Report&, const std::optional<Error>&, bool ran)> finished;
  /// The status has changed in a way that lasts.
  std::function<void(const JobStatus&)> changed;
  /// The status for a person, when a signal asks for it (SIGUSR1).
  std::function<void(const JobStatus&)> show;
};

/// One rank's part of a job that lives from command to command: it keeps its session, and does what
/// clients ask rank 0 for. A failure ends a command; only a lost rank, or one that does not come to
/// the recovery, ends the job.
class Resident {
 public:
  /// All references must outlive it. `observer` is told of every phase on every rank.
  Resident(const ServeOptions& options, Job& job, const ResidentVoice& voice,
           CycleObserver& observer, const EngineFactory& engines = built_in_engines());
  Resident(const Resident&) = delete;
  Resident& operator=(const Resident&) = delete;
  Resident(Resident&&) = delete;
  Resident& operator=(Resident&&) = delete;
  ~Resident();

  /// How a job has ended.
  struct End {
    std::optional<Error> error;  ///< The same on every rank that lives; absent: nothing failed.
    bool in_order = false;       ///< All ranks have come to the end: Job::finish is to follow.
  };

  /// Serves until a client or a signal ends the job, or a failure that nothing can follow.
  /// Collective.
  [[nodiscard]] End serve();

 private:
  class Relay;
  struct Door;
  struct Order;

  void open();
  void open_to_engines();
  [[nodiscard]] const EngineFactory& engines() const;
  void start();
  void end_if_stopped();
  /// Whether another command follows.
  bool serve_one(std::optional<Error>& end);
  [[nodiscard]] bool somebody_is_told_to_end();
  [[nodiscard]] Order next_order();
  [[nodiscard]] Order order_of_client();
  [[nodiscard]] std::optional<Order> order_at_rest();
  void run(const Order& order);
  void come_to_rest(std::optional<Error>& failure);
  void refresh();
  void look_at_rank_zero();
  void conclude(const std::optional<Error>& failure);
  void note_outcome(const std::optional<Error>& failure);
  void answer(const Visit& visit, const std::optional<Error>& error);
  void write_end(const std::string& end, ExitCode code);
  void bury(const Error& error) noexcept;
  void end_job(const std::optional<Error>& error);
  void set_activity(JobStatus::Activity activity, const std::string& command = {});
  void show_status_if_asked();

  const ServeOptions& options_;
  Job& job_;
  const ResidentVoice& voice_;
  const EngineFactory& engines_;
  Request request_;
  Report report_;
  std::unique_ptr<Door> door_;  ///< On rank 0.
  std::string private_directory_;
  std::unique_ptr<Relay> relay_;
  std::unique_ptr<attach::AttachedEngines> attached_;  ///< Where any role attaches; outlives the
                                                       ///< session.
  std::unique_ptr<Session> session_;
  std::optional<Deadline> rank_zero_stopped_;  ///< Since when, and for how long it may be.
  int shown_ = 0;                              ///< How many signals the status has been shown for.
};

}  // namespace awex
