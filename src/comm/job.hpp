#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.hpp"
#include "base/wait.hpp"
#include "comm/mpi_start.hpp"
#include "comm/peer.hpp"

namespace awex {

/// Bytes for another rank. The receiver must expect exactly as many.
struct Outgoing {
  int rank = 0;
  std::span<const std::byte> bytes;
};

/// Room for bytes from another rank.
struct Incoming {
  int rank = 0;
  std::span<std::byte> bytes;
};

/// Who has not done what ("finished the exchange") in time.
struct Late {
  std::vector<int> ranks;
  std::string deed;
};

/// The MPI world of a job, made for never hanging: every wait has a deadline, watches the processes
/// of this host and listens for other ranks' failures. Only the thread that made it may call it.
///
/// A failure that every rank finds at the same point (a wrong request, a digest mismatch) is agreed
/// on with `agree` and unwinds everywhere alike. A failure on one rank in the midst of its work is
/// told to all with `announce_failure`; from then on every wait and `poll` of every rank throws
/// that failure, until all have come to `recover`. What a resident program does with an Error of
/// its job:
///
///     report(job.recover(e));  // and goes on, unless that throws
///
/// and what one does that ends with it, or cannot recover:
///
///     if (job.failure_is_agreed()) { if (job.is_reporter()) report(e); job.finish(); return code;
///     } job.announce_failure(e); job.await_turn_to_report(code); report(e); job.abort(code);
class Job final : public WaitMonitor {
 public:
  using Start = MpiStart;

  /// Initialises MPI (thread level funneled, errors returned), learns the nodes of all ranks and
  /// notes SIGTERM and SIGINT from then on. `timeout` bounds each wait; MPI's own start, which
  /// cannot be polled, gets some seconds more, and ends the process with exit code 4. Collective.
  Job(int* argc, char*** argv, Seconds timeout) : Job(argc, argv, timeout, Start{}) {}
  Job(int* argc, char*** argv, Seconds timeout, const Start& start);
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  Job(Job&&) = delete;
  Job& operator=(Job&&) = delete;
  /// Does not communicate: call `finish` before.
  ~Job() override;

  [[nodiscard]] int rank() const;
  [[nodiscard]] int size() const;
  /// How many nodes the job has.
  [[nodiscard]] int nodes() const;
  [[nodiscard]] const NodeIdentity& node_of(int rank) const;
  /// This rank's.
  [[nodiscard]] const NodeIdentity& node() const { return node_of(rank()); }
  /// How many ranks of this rank's node come before it.
  [[nodiscard]] int node_rank() const;
  /// How long each wait may take from now on; to be the same on every rank.
  void set_timeout(Seconds timeout);
  /// A fresh deadline of the job's timeout.
  [[nodiscard]] Deadline deadline() const;
  /// Seconds since the common start (the last `synchronise_clocks`).
  [[nodiscard]] double now() const;
  /// Sets the common start on all ranks. Collective.
  void synchronise_clocks();

  /// Tells who is who; waits then name ranks with role, host and gpu, and watch this host's pids.
  void set_peers(std::vector<Peer> peers);
  [[nodiscard]] const std::vector<Peer>& peers() const;
  /// "rank 3 (inference, host a, gpu 1)", or "rank 3" before set_peers.
  [[nodiscard]] std::string describe(int rank) const;
  /// This rank's context for an error.
  [[nodiscard]] ErrorContext context() const;
  /// The context of an error that `rank` is to blame for, in this rank's phase.
  [[nodiscard]] ErrorContext context_of(int rank) const;

  /// Names what the job does now, for errors of waits ("transfer").
  void set_phase(std::string phase);
  [[nodiscard]] const std::string& phase() const;

  /// Everyone reports success (null) or failure; all get the first cause. Throws that failure on
  /// every rank, with the context of the rank where it happened. Collective. Rank 0 names the
  /// ranks that did not come before the deadline.
  void agree(const Error* mine);

  /// Every rank fails with the same error, found by all: it is nobody's own, so its context gets
  /// the phase, but only names a rank if it does already (context_of). Throws it, agreed, on every
  /// rank, or what else came first. Collective.
  [[noreturn]] void fail_together(const Error& error);

  /// Does what every rank does alone, without communicating, and agrees on its outcome. Collective.
  template <class Work>
  void do_and_agree(const Work& work) {
    std::optional<Error> failure;
    try {
      work();
    } catch (const Error& error) {
      failure = error;
    }
    agree(failure ? &*failure : nullptr);
  }

  /// Tells every rank of this rank's failure; does not wait. Returns the failure to report: the
  /// first that this rank knows of, which is another rank's if that was told before, and otherwise
  /// `error` with this rank's context. Tells and changes nothing when it is called again. Never
  /// throws.
  Error announce_failure(const Error& error) noexcept;

  /// Brings the job from a failure, `error` or what is known before it, into its next epoch: all
  /// ranks meet, every message and collective call of the failed work is brought to its end, and a
  /// new communicator begins. Returns the first cause, the same on every rank; the job is then as
  /// if nothing had failed. Device work is its owner's to end, before or after. Every rank must
  /// come, also one that has not failed itself: its next `poll` or wait tells it to. Collective.
  ///
  /// Throws, and the job must end, when a process is gone or was told to end, or a rank does not
  /// come before the deadline.
  [[nodiscard]] Error recover(const Error& error);
  /// Whether a failure is known from which the job cannot recover.
  [[nodiscard]] bool must_end() const;
  /// How often the job has recovered.
  [[nodiscard]] uint64_t epoch() const;

  /// Throws the failure that any rank announced, Error(kPeerLost) when a process of this host is
  /// gone, and Error(kRuntime) when this process was told to end (SIGTERM, SIGINT). Cheap: most
  /// calls only read the clock.
  void poll() override;
  /// `poll`, and so every wait, also calls `interrupt` from time to time (at most each 20 µs), but
  /// not while the job recovers; null takes it away. An Error that it throws is this rank's
  /// failure, as if what this rank did had thrown it.
  void set_interrupt(std::function<void()> interrupt);

  /// While this rank rests in `await_order`, `hook` is called ten times a second; null takes it
  /// away. It may wait for what is not another rank's. What it throws is this rank's failure.
  void set_rest_hook(std::function<void()> hook);

  /// Tells the other ranks how far long local work has come: it renews the deadlines of their
  /// waits, for `timeout` from then on. A rank that has begun such work and falls silent before its
  /// end fails the job.
  void progressed(const WorkProgress& progress) override;
  /// On rank 0 `watcher` hears of all ranks' progress, bytes done and bytes in all, until it is
  /// replaced by another or null.
  void watch_progress(std::function<void(uint64_t, uint64_t)> watcher);

  /// Collectives with the job's deadline. `send` has the same size on every rank; results are in
  /// rank order.
  [[nodiscard]] std::vector<std::byte> all_gather(std::span<const std::byte> send,
                                                  const std::string& what);
  void all_reduce_sum(std::span<uint64_t> values, const std::string& what);
  void all_reduce_max(std::span<uint64_t> values, const std::string& what);

  /// Sends and receives point to point; done when all is done. Messages between two ranks arrive in
  /// the order of the spans. Error(kDeadline) names the ranks still missing.
  ///
  /// Bytes travel through memory of the job's own, so that all spans may be freed after a failure.
  /// Where `memory` owns what they lie in they travel directly: the job then keeps it after a
  /// failure until MPI has let go of it, in `recover`.
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives,
                const std::string& what, std::shared_ptr<const void> memory = nullptr);

  /// From now on this job serves commands, each begun by an order. A signal to end (SIGTERM,
  /// SIGINT) then ends no job: a command that runs fails on the rank that got it, and can be
  /// recovered from; otherwise nothing throws, and `told_to_end` says so. Local; to be called on
  /// all ranks.
  void become_resident();
  [[nodiscard]] bool is_resident() const;
  /// Whether a signal has told this rank to end; on rank 0 also whether one has told any other,
  /// which is known after a few polls, and after `recover` the same on every rank. Rank 0 is then
  /// to give the last order soon.
  [[nodiscard]] bool told_to_end() const;
  /// A command begins when `give_order` or `await_order` returns; what a job does before its first
  /// order counts as one. It ends with the next `await_order`, with `recover` or `finish`, and, on
  /// rank 0, with this, before it waits for clients. So it should also, on every rank, when the
  /// order was to end the job.
  void end_command();

  /// On rank 0 of a resident job, which between commands polls at least each 100 ms: tells all
  /// other ranks what to do next, once they come to `await_order`. Within the deadline.
  void give_order(std::span<const std::byte> order);
  /// On all other ranks: the next order of rank 0, waited for without a deadline and at hardly any
  /// cost of processor time; it is there within about 2 ms. Throws what `poll` throws, and when
  /// this rank was told to end but rank 0 gives no last order within 10 s, or when rank 0 on
  /// another host gives no sign of life for the job's timeout; `poll` between commands does the
  /// same on rank 0 for other hosts. An order that this rank has not taken when the job fails never
  /// comes.
  [[nodiscard]] std::vector<std::byte> await_order();

  /// Waits until `done()` for what other ranks take part in, without a message of MPI. When the
  /// deadline passes, Error(kDeadline) says what `late()`, a Late, returns then; it also names
  /// stopped processes.
  template <class Done, class Lateness>
  void wait_for(const Done& done, const Lateness& late) {
    const Deadline limit = deadline();
    for (uint64_t spins = 0; !done(); ++spins) {
      poll();
      if (overdue(limit)) fail_late(late());
      pause_in_wait(spins);
    }
  }

  /// One value of a trivially copyable type from every rank.
  template <class T>
  [[nodiscard]] std::vector<T> all_gather_value(const T& value, const std::string& what) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto bytes = all_gather(std::as_bytes(std::span(&value, 1)), what);
    std::vector<T> values(static_cast<size_t>(size()));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  /// Whether the last failure was agreed on (every rank threw it), so that the job can end in
  /// order. Back to false with the next `set_phase`, `agree` or failure.
  [[nodiscard]] bool failure_is_agreed() const;
  /// Whether a rank is known to be gone, or not to answer any more.
  [[nodiscard]] bool is_lost(int rank) const;
  /// Whether this rank is the one to report: rank 0, or the next living one when rank 0 is lost.
  [[nodiscard]] bool is_reporter() const;

  /// After a failure that is not agreed on: returns on the rank that is to report it. All others
  /// end meanwhile, with `code`, as one has told that it has reported. When those before a rank do
  /// not within 3 s it is this rank's turn; under mpirun, which kills all a second after its
  /// signal, within 0.6 s after one has come, unless one of them tells that it reports.
  void await_turn_to_report(ExitCode code);

  /// Ends the job in order: finalises MPI. All ranks must come. Collective.
  void finish();
  /// Ends the whole job, which this rank has reported, with an exit code (MPI_Abort). Does not
  /// return. Rank 0 does so at once; the others give it up to 1.5 s to report and do so first.
  /// After a lost peer rank 0 waits as long, so that mpirun can notice the death itself and return
  /// 128 + the signal.
  [[noreturn]] void abort(ExitCode code);

 private:
  [[nodiscard]] bool overdue(const Deadline& deadline) const override;
  [[noreturn]] void fail_late(const Late& late);

  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace awex
