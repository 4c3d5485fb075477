#pragma once

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
/// it. Some failures end the job: a process that is gone, a signal to end, and all that goes wrong
/// while the job recovers.
class Failures {
 public:
  explicit Failures(MpiWorld& world) : world_(world) {}

  /// Watches the processes of this node's other ranks, which must be known to the world.
  void watch_processes();
  void stop_watching() { watch_.clear(); }

  /// Throws the failure that is known, if one is.
  void throw_known() const;
  [[nodiscard]] std::optional<Error> known() const;
  /// The same for other ranks, with the time when it happened; success where none is known.
  [[nodiscard]] WireError verdict() const;
  /// Whether a failure that ends the job is known.
  [[nodiscard]] bool ends_job() const { return ends_job_; }

  /// Takes in what other ranks have told of failures.
  void listen();
  /// Throws Error(kPeerLost) when a watched process is gone, or its failure if it told one.
  void look_for_lost();
  /// Throws that this process was told to end by a signal, or what other ranks tell at that time.
  void look_for_signal(int signal_number);

  /// Tells all ranks of the failure that is known here, which is `error` if there was none; once.
  void announce(const Error& error);
  /// Throws the failure that is known here, which is `error` if there was none, as every wait to
  /// come.
  [[noreturn]] void fail(const Error& error);
  /// Both.
  [[noreturn]] void announce_and_fail(const Error& error);
  /// Lets MPI send what is still to be told.
  void push() { outbox_.push(); }

  /// From now on the failures of this epoch are settled: only what ends the job is thrown.
  void begin_recovery();
  /// Forgets them. The world must be in the next epoch already.
  void end_recovery();

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
  void listen_for_cause();
  void take(const WireError& wire);
  void tell(int to, WireError wire);
  [[noreturn]] void end_job_with(const Error& error);

  /// A failure, and when it happened on the job's common clock.
  struct Known {
    Error error;
    double time_s = 0;
  };

  MpiWorld& world_;
  ProcessWatch watch_;
  std::optional<Known> failure_;
  std::optional<WireError> next_;  ///< Of the next epoch, which others have begun already.
  std::optional<Error> question_;
  bool told_ = false;  ///< All ranks know of the failure.
  bool recovering_ = false;
  bool ends_job_ = false;
  bool agreed_ = false;
  std::set<int> lost_;
  Outbox outbox_;
};

}  // namespace awex
