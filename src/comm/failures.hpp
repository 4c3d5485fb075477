#pragma once

#include <mpi.h>

#include <list>
#include <optional>
#include <set>
#include <utility>

#include "base/error.hpp"
#include "comm/mpi_world.hpp"
#include "comm/process_watch.hpp"
#include "comm/wire_error.hpp"

namespace awex {

/// What this rank knows of failures: it tells its own to all, hears of the others', and watches the
/// processes of its node. The first failure counts; from then on `throw_known` throws it.
class Failures {
 public:
  explicit Failures(MpiWorld& world) : world_(world) {}

  /// Watches the processes of this node's other ranks, which must be known to the world.
  void watch_processes();
  void stop_watching() { watch_.clear(); }

  /// Throws the failure that is known, if one is.
  void throw_known() const;
  [[nodiscard]] const std::optional<Error>& known() const { return failure_; }

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
  void push();

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
  void tell(int to, const WireError& wire);

  MpiWorld& world_;
  ProcessWatch watch_;
  std::optional<Error> failure_;
  std::optional<Error> question_;
  bool told_ = false;  ///< All ranks know of the failure.
  bool agreed_ = false;
  std::set<int> lost_;
  std::list<std::pair<WireError, MPI_Request>> outbox_;  ///< MPI may read it until it is finalised.
};

}  // namespace awex
