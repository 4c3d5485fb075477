#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/units.hpp"
#include "serve/job_directory.hpp"
#include "serve/job_status.hpp"
#include "serve/protocol.hpp"

namespace awex {

/// A client's command that waits for the job.
struct Visit {
  uint64_t client = 0;
  ClientRequest request;
};

/// Rank 0's door: a thread of its own takes clients of the job's socket in, answers kStatus from
/// the board at once, and puts commands into a queue, in the order of their coming. It makes no MPI
/// call. A client whose command is queued is told kQueued first; the rest by `tell`. Clients of
/// other users are refused; so are requests that are too long or too slow, and more than
/// kMostClients at once.
class Doorman {
 public:
  static constexpr size_t kMostClients = 256;

  /// Opens the socket of `directory` and begins. Both must outlive it. Throws run-time errors.
  Doorman(JobDirectory& directory, StatusBoard& board);
  Doorman(const Doorman&) = delete;
  Doorman& operator=(const Doorman&) = delete;
  Doorman(Doorman&&) = delete;
  Doorman& operator=(Doorman&&) = delete;
  /// Closes at once; what was told and is not sent yet is lost.
  ~Doorman();

  /// The next command, once it is there; nothing after `longest`, or when `wake` was called. The
  /// command counts as running until kDone is told to its client. A queued command whose client has
  /// gone away and wanted it cancelled never comes.
  [[nodiscard]] std::optional<Visit> next(Seconds longest);
  /// A client's wish that the job end, also where commands wait before it; nothing without one.
  /// It counts as running as `next` says. Does not wait.
  [[nodiscard]] std::optional<Visit> next_stop();
  /// Ends a `next` early. May be called from a signal handler.
  void wake() noexcept;
  /// Sends an event to a client; nothing where it has gone. Does not wait: a client that reads
  /// slowly loses kPhase events, then its connection. Thread-safe.
  void tell(uint64_t client, const Event& event);
  /// Whether a client's command is to be given up: it has gone away and had wanted that.
  /// Thread-safe and cheap.
  [[nodiscard]] bool is_cancelled(uint64_t client) const;

  /// Takes nobody in any more: commands that wait, and all that come, end with `error`. Returns
  /// when all has been sent that was told, or after `longest`.
  void close(const Error& error, Seconds longest);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace awex
