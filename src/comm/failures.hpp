#pragma once

#include <sys/types.h>

#include <optional>
#include <set>
#include <vector>

#include "base/error.hpp"
#include "comm/mpi_world.hpp"
#include "comm/process_watch.hpp"
#include "comm/requests.hpp"
#include "comm/wire_error.hpp"

namespace awex {

/// What this rank knows of failures: it tells its own to all, hears of the others', and watches the
/// processes of its node. The first failure of an epoch counts; from then on `throw_known` throws
/// it. Some failures end the job: a process that is gone, a signal to end (of a job that is not
/// resident), and all that goes wrong while the job recovers.
class Failures {
 public:
  explicit Failures(MpiWorld& world) : world_(world) {}

  /// Watches the processes of this node's other ranks, which must be known to the world, and the
  /// one that has started this one, where that is a launcher.
  void watch_processes();
  void stop_watching() {
    watch_.clear();
    launcher_ = 0;
  }

  /// Throws the failure that is known, if one is.
  void throw_known() const;
  [[nodiscard]] std::optional<Error> known() const;
  /// The same for other ranks, with the time when it happened; success where none is known.
  [[nodiscard]] WireError verdict() const;
  /// Whether a failure that ends the job is known.
  [[nodiscard]] bool ends_job() const { return ends_job_; }

  /// Takes in what other ranks have told of failures.
  void listen();
  /// Throws Error(kPeerLost) when a watched process is gone, or its failure if it told one. A
  /// launcher that is gone takes its ranks along: Open MPI ends them a second later.
  void look_for_lost();
  /// The signal that has told this process to end and is still to be looked into, or 0.
  [[nodiscard]] int pending_signal() const;
  /// Throws that the signal has told this process to end, or what other ranks tell at that time. In
  /// a resident job only while a command runs; otherwise rank 0 learns of it.
  void look_into_signal(int signal_number);

  /// From now on a signal fails a command, once, not the job.
  void become_resident() { resident_ = commanded_ = true; }
  [[nodiscard]] bool is_resident() const { return resident_; }
  /// Whether this rank waits for the next command of a resident job.
  [[nodiscard]] bool is_at_rest() const { return resident_ && !commanded_ && !recovering_; }
  void begin_command() { commanded_ = true; }
  void end_command() { commanded_ = false; }
  /// Whether a signal has told this rank to end, or another one as far as is known here.
  [[nodiscard]] bool told_to_end() const { return told_to_end_; }
  void set_told_to_end() { told_to_end_ = true; }
  /// Throws that rank 0 does not let a rank end that was told to.
  [[noreturn]] void fail_without_last_order(Seconds waited);

  /// Tells all ranks of the failure that is known here, which is `error` if there was none; once.
  void announce(const Error& error);
  /// Throws the failure that is known here, which is `error` if there was none, as every wait to
  /// come.
  [[noreturn]] void fail(const Error& error);
  /// Both.
  [[noreturn]] void announce_and_fail(const Error& error);
  /// The same of a failure that nothing can be recovered from.
  [[noreturn]] void announce_and_end_job(const Error& error);
  /// Tells all ranks that this one reports the failure that is known, which ends the job; then that
  /// it has reported it.
  void tell_reporting() { tell_all(Telling::kReporting); }
  void tell_reported() { tell_all(Telling::kReported); }
  /// Whether another rank has told so.
  [[nodiscard]] bool is_being_reported() const { return being_reported_; }
  [[nodiscard]] bool is_reported() const { return reported_; }
  /// Lets MPI send what is still to be told.
  void push() { outbox_.push(); }

  /// From now on the failures of this epoch are settled: only what ends the job is thrown.
  void begin_recovery();
  /// Forgets them. The world must be in the next epoch already.
  void end_recovery();

  [[nodiscard]] bool is_recovering() const { return recovering_; }

  /// Asks rank 0, for which this rank waits too long, who is missing; `late` is what it would say.
  void ask_rank_zero(const Error& late);
  /// On rank 0: whether somebody has asked. Not while a failure is known: that is an answer.
  [[nodiscard]] bool take_question();
  /// On rank 0: fails if somebody has asked, as this rank is then the one that is late.
  void answer_question();

  /// Ranks that are gone or do not answer.
  [[nodiscard]] bool is_lost(int rank) const { return lost_.contains(rank); }
  void give_up_on(int rank) { lost_.insert(rank); }
  void give_up_on(const std::vector<int>& ranks) { lost_.insert(ranks.begin(), ranks.end()); }

  /// Whether all ranks have thrown the last failure.
  [[nodiscard]] bool is_agreed() const { return agreed_; }
  void set_agreed(bool agreed) { agreed_ = agreed; }

 private:
  void listen_for_cause(Seconds longest);
  void look_for_launcher();
  void take(const WireError& wire);
  void tell(int to, WireError wire);
  void tell_all(const WireError& wire);
  void tell_all(Telling telling);
  void note_gone(int rank);
  [[nodiscard]] Error told_to_end_by(int signal_number) const;
  [[noreturn]] void end_job_with(const Error& error);

  /// A failure, and when it happened on the job's common clock.
  struct Known {
    Error error;
    double time_s = 0;
  };

  MpiWorld& world_;
  ProcessWatch watch_;
  pid_t launcher_ = 0;  ///< 0 for none that is watched.
  std::optional<Known> failure_;
  std::optional<WireError> next_;  ///< Of the next epoch, which others have begun already.
  std::optional<Error> question_;
  bool told_ = false;  ///< All ranks know of the failure.
  bool recovering_ = false;
  bool ends_job_ = false;
  bool agreed_ = false;
  bool resident_ = false;
  bool commanded_ = false;       ///< A command runs, of a resident job.
  bool told_to_end_ = false;     ///< By a signal, this rank or another.
  bool being_reported_ = false;  ///< By another rank, as
  bool reported_ = false;
  bool signal_noted_ = false;  ///< This rank's own: rank 0 knows of it.
  std::set<int> ending_;       ///< Ranks that have told rank 0 that a signal came.
  std::set<int> gone_;         ///< Ranks whose processes have ended, on any host.
  std::set<int> lost_;         ///< Those, and those that do not answer.
  Outbox outbox_;
};

}  // namespace awex
