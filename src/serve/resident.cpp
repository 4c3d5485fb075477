#include "serve/resident.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <span>
#include <string_view>
#include <utility>

#include "attach/attached_engines.hpp"
#include "base/build_identity.hpp"
#include "base/error_json.hpp"
#include "base/fixed_text.hpp"
#include "base/log.hpp"
#include "base/node_identity.hpp"
#include "base/private_directory.hpp"
#include "base/utc_now.hpp"
#include "comm/process_watch.hpp"
#include "comm/signals.hpp"

namespace awex {
namespace {

/// How long rank 0 waits for clients between two looks at the other ranks.
constexpr Seconds kLook{0.1};
/// How often rank 0 learns how engines that attach stand.
constexpr Seconds kRollCall{1};
/// The same where one is lost: the next may wait at the door.
constexpr Seconds kRollCallOfLost{0.2};
/// How long clients may take to read what they are told when the job ends.
constexpr Seconds kFarewell{1};

/// A client's `update` is a hand-over and its `resume` a take-back, unless it names what is to
/// come.
CommandOptions resident_command(CommandOptions command) {
  if (command.command == Command::kUpdate) command.command = Command::kHandOver;
  if (command.command == Command::kResume && !command.scope) command.command = Command::kTakeBack;
  return command;
}

/// What trainers wait for of which rank 0's, whose wish begins commands, has as much already: one
/// of them was lost in the midst of a take-back.
std::optional<TakenBack> wanted_by_others(const std::vector<RankStatus>& ranks) {
  if (ranks.empty() || !ranks[0].attendance) return std::nullopt;
  const auto any_wishes = [&](EngineWish wish) {
    return std::any_of(ranks.begin(), ranks.end(), [wish](const RankStatus& rank) {
      return rank.attendance && rank.attendance->wish == wish;
    });
  };
  const auto& first = *ranks[0].attendance;
  if (first.has_all && any_wishes(EngineWish::kTakeBack)) return TakenBack::kAll;
  if (first.has_weights && any_wishes(EngineWish::kTakeBackWeights)) return TakenBack::kWeights;
  return std::nullopt;
}

/// Whom the ranks of a job that starts wait for: each says so in its record.
void add_waits(JobStatus& status, const std::string& directory, const std::string& job) {
  if (status.activity != JobStatus::Activity::kStarting) return;
  try {
    for (const auto& record : attach::read_engine_records(directory)) {
      if (record.job != job || record.awaits.empty()) continue;
      status.waits.push_back({record.rank, role_name(record.role), record.host, record.awaits});
    }
  } catch (const Error& error) {
    log::warning(fmt::format("whom the ranks wait for is not known: {}", error.what()));
  }
  std::sort(status.waits.begin(), status.waits.end(),
            [](const RankWait& a, const RankWait& b) { return a.rank < b.rank; });
}

/// How a job has ended that was told to while a command failed. What the launcher sends goes to its
/// engines, too: so it may be one of them that fails it.
Error end_amid(const Error& failure) {
  const std::string_view what = failure.what();
  if (what.starts_with("told to end by")) return failure;
  Error end(failure.code(),
            fmt::format("told to end by a signal, by which time a command failed: {}", what),
            failure.hint());
  end.context() = failure.context();
  return end;
}

}  // namespace

/// What rank 0 has beside its session.
struct Resident::Door {
  explicit Door(const std::string& path) : directory(path), doorman(directory, board) {}

  JobDirectory directory;
  StatusBoard board;
  Doorman doorman;
  std::optional<Visit> visit;     ///< Of the command that runs, or that ends the job.
  bool runs = false;              ///< A command does, a client's or an engine's.
  bool is_stopped_early = false;  ///< By the client of the visit, as it wished.
  Deadline roll_call{kRollCall};
  std::optional<TakenBack> others_want;  ///< Of a take-back that rank 0's need not ask for.
  Stopwatch watch;                       ///< Of the command that runs.
};

/// What all ranks do next. Plain data, to be sent.
struct Resident::Order {
  enum class Kind : uint8_t { kRun, kLook, kEnd };
  Kind kind = Kind::kEnd;
  CommandOptions command;
};

/// Passes on what happens in a cycle: to the observer and, on rank 0, to the client whose command
/// it is and to the status.
class Resident::Relay final : public CycleObserver {
 public:
  explicit Relay(CycleObserver& observer) : observer_(observer) {}
  void set_door(Door* door) { door_ = door; }

  void phase_started(const PhaseEvent& event) override {
    tell(event, std::nullopt, 0);
    observer_.phase_started(event);
  }
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) override {
    tell(event, seconds, bytes);
    observer_.phase_finished(event, seconds, bytes);
  }
  void run_started(const Report& report) override { observer_.run_started(report); }
  void loading(uint64_t done_bytes, uint64_t all_bytes) override {
    observer_.loading(done_bytes, all_bytes);
  }
  void loaded() override { observer_.loaded(); }
  void version_finished(const Report& report) override { observer_.version_finished(report); }

 private:
  void tell(const PhaseEvent& event, std::optional<double> seconds, uint64_t bytes) {
    if (door_ == nullptr) return;
    if (!seconds) door_->board.update([&](JobStatus& status) { status.phase = event.phase; });
    if (!door_->visit) return;
    Event news;
    news.kind = Event::Kind::kPhase;
    news.phase = event.phase;
    news.role = event.role;
    news.tag = event.tag;
    news.seconds = seconds;
    news.bytes = bytes;
    door_->doorman.tell(door_->visit->client, news);
  }

  CycleObserver& observer_;
  Door* door_ = nullptr;  ///< On rank 0.
};

Resident::Resident(const ServeOptions& options, Job& job, const ResidentVoice& voice,
                   CycleObserver& observer, const EngineFactory& engines)
    : options_(options),
      job_(job),
      voice_(voice),
      engines_(engines),
      request_{options.job, {.command = Command::kHandOver}},
      relay_(std::make_unique<Relay>(observer)) {
  report_ = begin_report(request_, job);
  report_.command = "serve";
}

Resident::~Resident() {
  wake_on_signals(nullptr, nullptr);
  job_.set_rest_hook(nullptr);
}

Resident::End Resident::serve() {
  End end;
  try {
    open();
    open_to_engines();
    start();
    while (serve_one(end.error)) {
    }
    job_.set_rest_hook(nullptr);
    session_.reset();
    job_.set_phase("the end of the job");
    job_.agree(nullptr);
    end.in_order = true;
  } catch (const Error& error) {
    end.error = error;
  } catch (const std::exception& error) {
    end.error = runtime_error(error.what());
  }
  job_.set_interrupt(nullptr);
  end.in_order = end.in_order || job_.failure_is_agreed();
  if (!end.in_order) {
    end.error = job_.announce_failure(*end.error);
    bury(*end.error);
    // The process is about to be aborted, maybe with work in flight on memory that freeing would
    // wait for, and a peer may still read it.
    if (session_) session_.release()->stop_background();
  }
  end_job(end.error);
  return end;
}

/// Rank 0 opens its door; all learn where it is.
void Resident::open() {
  job_.set_phase("setup");
  job_.become_resident();
  note_status_signals();
  FixedText<256> place{};
  job_.do_and_agree([&] {
    if (job_.rank() != 0) return;
    door_ = std::make_unique<Door>(options_.directory);
    relay_->set_door(door_.get());
    place = fixed_text<256>(door_->directory.private_directory());
  });
  private_directory_ = text_of(job_.all_gather_value(place, "the job's private directory")[0]);
  if (!door_) return;
  wake_on_signals([](void* doorman) { static_cast<Doorman*>(doorman)->wake(); }, &door_->doorman);
  if (const auto& former = door_->directory.former()) {
    voice_.log(fmt::format("{} is no longer that of {}", options_.directory, describe(*former)),
               {"former_job", {{"directory", options_.directory}}});
  }
  door_->board.update([this](JobStatus& status) {
    status.started_at = report_.started_at;
    status.build = build_identity();
  });
}

/// Which may attach from now on.
void Resident::open_to_engines() {
  const auto& wanted = options_.attach;
  if (!wanted.any()) return;
  attach::AttachSettings settings;
  settings.job_directory = options_.directory;
  settings.trainer = wanted.trainer;
  settings.inference = wanted.inference;
  settings.admits_by_digest = wanted.admits_by_digest;
  settings.patience = wanted.patience;
  settings.takes_memory = options_.job.offload;
  settings.here.job = private_directory_;
  settings.here.host = job_.node().name();
  settings.here.boot_id = text_of(job_.node().boot);
  settings.here.pid_namespace = own_pid_namespace();
  settings.here.rank = job_.rank();
  settings.here.pid = ::getpid();
  if (door_) {
    settings.wake = [doorman = &door_->doorman] { doorman->wake(); };
    door_->board.look_with([directory = options_.directory, job = private_directory_](
                               JobStatus& status) { add_waits(status, directory, job); });
  }
  attached_ = std::make_unique<attach::AttachedEngines>(std::move(settings));
}

const EngineFactory& Resident::engines() const { return attached_ ? *attached_ : engines_; }

void Resident::start() {
  if (door_) job_.set_interrupt([this] { end_if_stopped(); });
  session_ = std::make_unique<Session>(request_, job_, *relay_, report_, engines());
  if (door_) {
    door_->board.update([this](JobStatus& status) {
      status.backend = report_.backend;
      status.model_name = report_.model_name;
      status.trainer = report_.trainer;
      status.inference = report_.inference;
      status.rank_infos = report_.rank_infos;
    });
  }
  session_->start();
  job_.set_interrupt(nullptr);
  if (session_->has_attached()) {
    job_.set_rest_hook([this] {
      session_->attend();
      look_at_rank_zero();
    });
  }
  refresh();
  if (!door_) return;
  voice_.log(fmt::format("serving {}: {} -> {}, {} ranks, {}; loaded in {}", report_.model_name,
                         report_.trainer, report_.inference, report_.ranks, report_.backend,
                         format_seconds(door_->watch.seconds())),
             {"serving",
              {{"model", report_.model_name},
               {"trainer", report_.trainer},
               {"inference", report_.inference},
               {"ranks", report_.ranks},
               {"backend", report_.backend},
               {"seconds", door_->watch.seconds()}}});
  set_activity(JobStatus::Activity::kIdle);
}

/// While rank 0 starts, which may take long: engines are waited for, checkpoints read.
void Resident::end_if_stopped() {
  door_->visit = door_->doorman.next_stop();
  if (!door_->visit) return;
  job_.set_interrupt(nullptr);
  door_->is_stopped_early = true;
  throw runtime_error("stopped by a client before it served");
}

bool Resident::serve_one(std::optional<Error>& end) {
  std::optional<Error> failure;
  try {
    const Order order = next_order();
    if (order.kind == Order::Kind::kEnd) {
      job_.end_command();  // a signal has nothing more to end
      return false;
    }
    if (order.kind == Order::Kind::kLook) {
      job_.end_command();
      come_to_rest(failure);
      if (!failure) return true;
    } else {
      run(order);
      job_.end_command();
    }
  } catch (const Error& error) {
    failure = error;
  } catch (const std::exception& error) {
    failure = runtime_error(error.what());
  }
  come_to_rest(failure);
  conclude(failure);
  if (failure && somebody_is_told_to_end()) end = end_amid(*failure);
  return !end;
}

/// After a command, or a failure of it: all ranks are ready for the next, and rank 0 knows what
/// they hold. What fails on the way is recovered from, too; the first cause stays.
void Resident::come_to_rest(std::optional<Error>& failure) {
  constexpr int kMostTries = 3;
  job_.set_interrupt(nullptr);  // a client that has gone fails its command, not what follows
  for (int tries = 1;; ++tries) {
    try {
      if (failure) {
        set_activity(JobStatus::Activity::kRecovering);
        failure = session_->recover(*failure);
      }
      return refresh();
    } catch (const Error& error) {
      if (job_.must_end() || tries == kMostTries) throw;
      if (!failure) failure = error;
    }
  }
}

/// Whether a signal has failed the command: then the job ends, in order. The same on every rank.
bool Resident::somebody_is_told_to_end() {
  const int told = job_.told_to_end() ? 1 : 0;
  const auto all = job_.all_gather_value(told, "who was told to end");
  return std::find(all.begin(), all.end(), 1) != all.end();
}

Resident::Order Resident::next_order() {
  job_.set_phase("the wait for commands");
  if (door_) {
    const Order order = order_of_client();
    job_.give_order(std::as_bytes(std::span(&order, 1)));
    return order;
  }
  const auto bytes = job_.await_order();
  Order order;
  if (bytes.size() != sizeof(order)) throw runtime_error("an order of rank 0 is none");
  std::memcpy(&order, bytes.data(), sizeof(order));
  return order;
}

/// Rank 0 waits for a client, and meanwhile for signals and other ranks' failures.
Resident::Order Resident::order_of_client() {
  job_.end_command();
  while (!door_->visit) {
    job_.poll();
    if (job_.told_to_end()) {
      write_end("told to end by a signal", ExitCode::kOk);
      return {Order::Kind::kEnd, {}};
    }
    show_status_if_asked();
    if (const auto order = order_at_rest()) return *order;
    door_->visit = door_->doorman.next(kLook);
    if (!door_->visit) continue;
    const ClientRequest& request = door_->visit->request;
    if (request.errand == Errand::kStop) {
      write_end("stopped by a client", ExitCode::kOk);
      return {Order::Kind::kEnd, {}};
    }
    if (request.errand != Errand::kRestore) break;
    Event done;
    done.table = "the job serves: nothing is lost, and there is nothing to restore\n";
    door_->doorman.tell(door_->visit->client, done);
    door_->visit.reset();
  }
  return {Order::Kind::kRun, resident_command(door_->visit->request.command)};
}

/// What engines that attach give rise to.
std::optional<Resident::Order> Resident::order_at_rest() {
  if (!session_->has_attached()) return std::nullopt;
  session_->attend();
  switch (session_->wish()) {
    case EngineWish::kHandOver:
      return Order{Order::Kind::kRun, {.command = Command::kHandOver}};
    case EngineWish::kTakeBack:
      return Order{Order::Kind::kRun, {.command = Command::kTakeBack}};
    case EngineWish::kTakeBackWeights:
      return Order{Order::Kind::kRun,
                   {.command = Command::kTakeBack, .taken_back = TakenBack::kWeights}};
    case EngineWish::kNone:
      break;
  }
  if (const auto wanted = std::exchange(door_->others_want, std::nullopt)) {
    return Order{Order::Kind::kRun, {.command = Command::kTakeBack, .taken_back = *wanted}};
  }
  if (!door_->roll_call.expired()) return std::nullopt;
  return Order{Order::Kind::kLook, {}};
}

void Resident::run(const Order& order) {
  report_.command = command_name(order.command.command);
  report_.started_at = utc_now();
  report_.versions.clear();
  report_.error.reset();
  report_.finished = false;
  if (door_) {
    door_->watch = {};
    door_->runs = true;
    set_activity(JobStatus::Activity::kRunning, report_.command);
  }
  if (door_ && door_->visit) {
    const uint64_t client = door_->visit->client;
    Event started;
    started.kind = Event::Kind::kStarted;
    door_->doorman.tell(client, started);
    job_.set_interrupt([this, client] {
      if (!door_->doorman.is_cancelled(client)) return;
      throw runtime_error("the client has gone, and its command with it",
                          "--on-disconnect finish lets a command go on without its client");
    });
  }
  job_.synchronise_clocks();
  session_->run(order.command);
  job_.set_phase(fmt::format("the end of the {}", report_.command));
  job_.agree(nullptr);
}

/// Rank 0 learns what all ranks hold now.
void Resident::refresh() {
  auto ranks = session_->statuses();
  if (!door_) return;
  const bool all_here = std::all_of(ranks.begin(), ranks.end(), [](const RankStatus& rank) {
    return !rank.attendance || rank.attendance->is_here;
  });
  door_->roll_call = Deadline(all_here ? kRollCall : kRollCallOfLost);
  door_->others_want = wanted_by_others(ranks);
  door_->board.update([&](JobStatus& status) {
    status.ranks = std::move(ranks);
    status.content = session_->content().state();
    status.committed_version = report_.committed_version;
    status.memory = report_.memory;
    status.epoch = job_.epoch();
  });
}

/// At rest, on the other ranks of its node: rank 0 gives all orders, so that engines would wait for
/// one that is stopped as long as they can.
void Resident::look_at_rank_zero() {
  if (job_.rank() == 0 || job_.node_of(0) != job_.node()) return;
  const auto& zero = job_.peers()[0];
  if (!is_stopped(zero.pid)) return rank_zero_stopped_.reset();
  if (!rank_zero_stopped_) rank_zero_stopped_.emplace(options_.job.timeout);
  if (!rank_zero_stopped_->expired()) return;
  throw Error(
      ExitCode::kDeadline,
      fmt::format("{} pid {} is stopped for {}, and no engine can be served without it",
                  zero.describe(), zero.pid, format_seconds(options_.job.timeout.count())),
      "see who has stopped it (kill -CONT would have let it go on), and start the job anew");
}

/// A command is over: its client learns how, and so does the log.
void Resident::conclude(const std::optional<Error>& failure) {
  report_.finished = !failure;
  if (!door_) return;
  note_outcome(failure);
  set_activity(JobStatus::Activity::kIdle);  // before a client looks
  if (!door_->visit) return;                 // the failure came while nothing ran
  const Visit visit = *std::exchange(door_->visit, std::nullopt);
  answer(visit, failure);
}

void Resident::note_outcome(const std::optional<Error>& failure) {
  const bool ran = std::exchange(door_->runs, false) || door_->visit.has_value();
  door_->board.update([&](JobStatus& status) {
    status.commands += ran ? 1 : 0;
    status.failures += failure ? 1 : 0;
    if (!failure) return;
    status.last_error = failure;
    status.last_error_at = utc_now();
  });
  voice_.finished(report_, failure, ran);
  const auto what = ran ? report_.command : "between commands";
  const double seconds = door_->watch.seconds();
  const auto time = format_seconds(seconds);
  const bool has_version = !report_.versions.empty() && report_.versions.back().committed;
  log::Fact fact{"command",
                 {{"command", ran ? Json(report_.command) : Json()},
                  {"exit_code", static_cast<int>(failure ? failure->code() : ExitCode::kOk)},
                  {"seconds", seconds},
                  {"committed_version", value_or_null(report_.committed_version)},
                  {"error", failure ? error_json(*failure) : Json()}}};
  if (failure) {
    voice_.log(fmt::format("{}: failed (exit {}) after {}: {}", what,
                           static_cast<int>(failure->code()), time, failure->what()),
               fact);
  } else if (has_version) {
    voice_.log(fmt::format("{}: version {} in {}", what, report_.versions.back().version, time),
               fact);
  } else {
    voice_.log(fmt::format("{}: done in {}", what, time), fact);
  }
}

void Resident::answer(const Visit& visit, const std::optional<Error>& error) {
  Event done;
  done.exit_code = error ? error->code() : ExitCode::kOk;
  done.error = error;
  report_.error = error;
  if (visit.request.errand == Errand::kStop) return door_->doorman.tell(visit.client, done);
  const Rendering& wanted = visit.request.rendering;
  const bool has_report = !error || !report_.versions.empty();
  if (wanted.table && has_report) done.table = voice_.table(report_, wanted);
  if (wanted.json) done.json = voice_.json(report_);
  if (wanted.trace) done.trace = voice_.trace(report_);
  door_->doorman.tell(visit.client, done);
}

/// Whoever looks later learns how the job has ended. That comes first: mpirun may end the process
/// at any moment.
void Resident::write_end(const std::string& end, ExitCode code) {
  try {
    door_->directory.write_end(end, code);
  } catch (const Error& unwritable) {
    log::warning(unwritable.what());  // the job's own end is the one that counts
  }
  voice_.log(fmt::format("the job ends: {}", end),
             {"end", {{"exit_code", static_cast<int>(code)}, {"end", end}}});
}

/// The clients that wait learn how the job has ended; then nothing of it is left on this host.
void Resident::end_job(const std::optional<Error>& error) {
  // The engines learn of it; where the session lives on, it ends with the process.
  if (attached_ && error) attached_->end_with(*error);
  if (!session_) attached_.reset();
  if (!door_) return;
  wake_on_signals(nullptr, nullptr);
  set_activity(JobStatus::Activity::kEnding);
  if (error) write_end(error->what(), error->code());
  if (door_->visit) answer(*door_->visit, door_->is_stopped_early ? std::nullopt : error);
  door_->doorman.close(error.value_or(runtime_error(
                           fmt::format("the job has ended: {}", door_->directory.record().end))),
                       kFarewell);
  relay_->set_door(nullptr);
  door_.reset();
}

/// Where ranks are lost, others of their host leave the directories as they would have.
void Resident::bury(const Error& error) noexcept {
  remove_abandoned_directories();
  if (attached_) {
    attached_->bury([this](const attach::EngineRecord& record) {
      const auto& peers = job_.peers();
      const auto rank = static_cast<size_t>(record.rank);
      return job_.is_lost(record.rank) && rank < peers.size() && peers[rank].pid == record.pid;
    });
  }
  if (job_.rank() == 0 || !job_.is_lost(0) || private_directory_.empty()) return;
  if (job_.node_of(0) == job_.node())
    bury_job(options_.directory, private_directory_, error.what());
}

/// On rank 0.
void Resident::set_activity(JobStatus::Activity activity, const std::string& command) {
  if (!door_) return;
  door_->board.update([&](JobStatus& status) {
    status.activity = activity;
    status.command = command;
    status.phase.clear();
  });
  voice_.changed(door_->board.read());
}

void Resident::show_status_if_asked() {
  const int asked = status_signals();
  if (asked == shown_) return;
  shown_ = asked;
  voice_.show(door_->board.read());
}

}  // namespace awex
