#include "comm/job.hpp"

#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "comm/collectives.hpp"
#include "comm/ending.hpp"
#include "comm/failures.hpp"
#include "comm/host_watch.hpp"
#include "comm/mpi_world.hpp"
#include "comm/orders.hpp"
#include "comm/progress.hpp"
#include "comm/recovery.hpp"
#include "comm/requests.hpp"
#include "comm/signals.hpp"
#include "comm/waits.hpp"
#include "comm/wire_error.hpp"

namespace awex {
namespace {

// MPI counts are ints.
constexpr size_t kLargestMessage = 1ULL << 30;

}  // namespace

struct Job::Parts {
  Parts(int* argc, char*** argv, Seconds timeout, const Start& start)
      : world(argc, argv, timeout, start) {}

  MpiWorld world;
  Failures failures{world};
  Progress progress{world, failures};
  Waits waits{world, failures, progress};
  Agreement agreement{world, failures, waits};
  Collectives collectives{world, failures, waits, agreement};
  HostWatch hosts{world, failures};
  Orders orders{world, failures, waits, hosts};
  Recovery recovery{world, failures, progress, waits, collectives};
  Ending ending{world, failures, collectives};
};

Job::Job(int* argc, char*** argv, Seconds timeout, const Start& start)
    : parts_(std::make_unique<Parts>(argc, argv, timeout, start)) {
  note_termination_signals();
  // Waits sleep for microseconds; Linux would add 50 to each.
  ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
}

Job::~Job() = default;

// ---- Who, where, what

int Job::rank() const { return parts_->world.rank(); }
int Job::size() const { return parts_->world.size(); }
int Job::node_rank() const {
  int before = 0;
  for (int other = 0; other < rank(); ++other) before += node_of(other) == node() ? 1 : 0;
  return before;
}
int Job::nodes() const { return parts_->world.nodes(); }
const NodeIdentity& Job::node_of(int rank) const { return parts_->world.node_of(rank); }
void Job::set_timeout(Seconds timeout) { parts_->world.set_timeout(timeout); }
Deadline Job::deadline() const { return Deadline(parts_->world.timeout()); }
double Job::now() const { return parts_->world.now(); }
const std::vector<Peer>& Job::peers() const { return parts_->world.peers(); }
std::string Job::describe(int rank) const { return parts_->world.describe(rank); }
ErrorContext Job::context() const { return context_of(rank()); }
ErrorContext Job::context_of(int rank) const { return parts_->world.context_of(rank); }
const std::string& Job::phase() const { return parts_->world.phase(); }

void Job::set_peers(std::vector<Peer> peers) {
  parts_->world.set_peers(std::move(peers));
  parts_->failures.watch_processes();
}

void Job::set_phase(std::string phase) {
  parts_->world.set_phase(std::move(phase));
  parts_->failures.set_agreed(false);
}

void Job::synchronise_clocks() {
  // The agreement is the common moment of different nodes; the ranks of one node share a clock and
  // so take their first rank's reading.
  agree(nullptr);
  using Clock = MpiWorld::Clock;
  const auto readings =
      all_gather_value(Clock::now().time_since_epoch().count(), "the clocks of all ranks");
  const auto first = static_cast<size_t>(parts_->world.node_ranks().front());
  parts_->world.set_start(Clock::time_point(Clock::duration(readings[first])));
}

// ---- Verdicts and failures

void Job::agree(const Error* mine) {
  const auto& world = parts_->world;
  parts_->agreement.agree(mine != nullptr ? to_wire(world.located(*mine), world.now())
                                          : WireError{});
}

void Job::fail_together(const Error& error) {
  Error common = error;
  if (common.context().phase.empty()) common.context().phase = phase();
  parts_->agreement.agree(to_wire(common, now()));
  throw common;  // agree throws on every rank; this tells the compiler so
}

Error Job::announce_failure(const Error& error) noexcept {
  try {
    parts_->failures.announce(error);
  } catch (const std::exception& e) {
    log::warning(fmt::format("cannot tell other ranks of a failure: {}", e.what()));
  }
  return parts_->failures.known().value_or(error);
}

Error Job::recover(const Error& error) { return parts_->recovery.recover(error); }
bool Job::must_end() const { return parts_->failures.ends_job(); }
uint64_t Job::epoch() const { return parts_->world.epoch(); }

bool Job::failure_is_agreed() const { return parts_->failures.is_agreed(); }

// ---- Waits

void Job::poll() {
  parts_->waits.poll();
  // Only rank 0 rests in its own way; the others do in await_order.
  if (parts_->failures.is_at_rest()) parts_->hosts.look();
}
void Job::set_interrupt(std::function<void()> interrupt) {
  parts_->waits.set_interrupt(std::move(interrupt));
}
void Job::set_rest_hook(std::function<void()> hook) {
  parts_->waits.set_rest_hook(std::move(hook));
}
bool Job::overdue(const Deadline& deadline) const {
  return parts_->progress.overdue(deadline, Seconds(0));
}

void Job::fail_late(const Late& late) {
  // The late may be waiting themselves for others; the stopped are lost for certain.
  parts_->failures.give_up_on(parts_->world.stopped_ranks());
  parts_->failures.announce_and_fail(parts_->world.late(late.ranks, late.deed));
}

void Job::progressed(const WorkProgress& progress) { parts_->progress.progressed(progress); }
void Job::watch_progress(std::function<void(uint64_t, uint64_t)> watcher) {
  parts_->progress.watch(std::move(watcher));
}

// ---- Messages

std::vector<std::byte> Job::all_gather(std::span<const std::byte> send, const std::string& what) {
  return parts_->collectives.all_gather(send, what);
}

void Job::all_reduce_sum(std::span<uint64_t> values, const std::string& what) {
  parts_->collectives.all_reduce(CollectiveCall::Kind::kSum, values, what);
}

void Job::all_reduce_max(std::span<uint64_t> values, const std::string& what) {
  parts_->collectives.all_reduce(CollectiveCall::Kind::kMax, values, what);
}

void Job::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives,
                   const std::string& what, std::shared_ptr<const void> memory) {
  parts_->failures.throw_known();  // messages of what has failed would be taken for these
  Requests requests(parts_->world.traffic(), std::move(memory));
  for (const auto& [rank, bytes] : receives) {
    for (size_t at = 0; at < bytes.size(); at += kLargestMessage) {
      requests.receive(bytes.subspan(at, std::min(kLargestMessage, bytes.size() - at)), rank,
                       kDataTag);
    }
  }
  for (const auto& [rank, bytes] : sends) {
    for (size_t at = 0; at < bytes.size(); at += kLargestMessage) {
      requests.send(bytes.subspan(at, std::min(kLargestMessage, bytes.size() - at)), rank,
                    kDataTag);
    }
  }
  wait_for([&] { return requests.test(); },
           [&] {
             return Late{requests.missing(), fmt::format("taken part in '{}'", what)};
           });
}

void Job::become_resident() { parts_->failures.become_resident(); }
bool Job::is_resident() const { return parts_->failures.is_resident(); }
void Job::end_command() { parts_->failures.end_command(); }
bool Job::told_to_end() const { return parts_->failures.told_to_end(); }
void Job::give_order(std::span<const std::byte> order) { parts_->orders.give(order); }
std::vector<std::byte> Job::await_order() { return parts_->orders.await(); }

// ---- End

bool Job::is_lost(int rank) const { return parts_->failures.is_lost(rank); }
bool Job::is_reporter() const { return parts_->ending.is_reporter(); }
void Job::await_turn_to_report(ExitCode code) { parts_->ending.await_turn_to_report(code); }
void Job::finish() { parts_->ending.finish(); }
void Job::abort(ExitCode code) { parts_->ending.abort(code); }

}  // namespace awex
