#include "comm/failures.hpp"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "base/launch.hpp"
#include "base/signal_name.hpp"
#include "base/wait.hpp"
#include "comm/requests.hpp"
#include "comm/signals.hpp"

namespace awex {
namespace {

// Another rank's failure may still be on its way; it says more than SIGTERM or that rank's end.
constexpr Seconds kCauseGrace{0.1};
// The same for a signal where there are several hosts: their ranks wait for causes themselves
// before they tell who is gone. Until then nobody should write to them: Open MPI ends a process
// that connects to one that is gone, and kills all a second after SIGTERM.
constexpr Seconds kOtherHostsGrace{0.3};

}  // namespace

void Failures::watch_processes() {
  watch_.clear();
  launcher_ = this_launch().launcher == Launcher::kNone ? 0 : ::getppid();
  for (const int other : world_.node_ranks()) {
    if (other == world_.rank()) continue;
    watch_.add(other, world_.peers().at(static_cast<size_t>(other)).pid);
  }
}

void Failures::throw_known() const {
  if (failure_) throw Error(failure_->error);
}

std::optional<Error> Failures::known() const {
  if (!failure_) return std::nullopt;
  return failure_->error;
}

WireError Failures::verdict() const {
  return failure_ ? to_wire(failure_->error, failure_->time_s) : WireError{};
}

void Failures::listen() {
  take_letters<WireError>(kFailureTag, world_.control(), [this](const WireError& wire, int from) {
    if (wire.telling == Telling::kToldToEnd) {
      told_to_end_ = true;
      ending_.insert(from);
    } else {
      take(wire);
    }
  });
}

void Failures::take(const WireError& wire) {
  if (wire.telling == Telling::kReporting || wire.telling == Telling::kReported) {
    being_reported_ = true;
    reported_ = reported_ || wire.telling == Telling::kReported;
    return;
  }
  if (wire.rank_zero_lost) lost_.insert(0);
  for (const int rank : wire.gone) {
    if (rank >= 0) note_gone(rank);
  }
  if (wire.epoch > world_.epoch() && !wire.ends_job) {
    if (wire.telling == Telling::kFailure && !next_) next_ = wire;
    return;
  }
  if (wire.epoch < world_.epoch() && !wire.ends_job) return;  // settled long ago
  if (wire.telling == Telling::kQuestion) {
    // One that was asked before the failure was known has its answer.
    if (wire.recovers == recovering_) question_ = from_wire(wire);
    return;
  }
  ends_job_ = ends_job_ || wire.ends_job;
  const bool is_settled = recovering_ && !wire.ends_job;
  if (failure_ || is_settled) return;
  failure_ = Known{from_wire(wire), wire.time_s};
  told_ = true;
  agreed_ = false;
  if (world_.is_first_of_node()) world_.ring_node();
}

/// Takes in what arrives for a moment, or until all others have told that a signal came; throws if
/// it is a failure, which then is the cause.
void Failures::listen_for_cause(Seconds longest) {
  const Deadline grace(longest);
  const auto all_others = static_cast<size_t>(world_.size() - 1);
  for (uint64_t spins = 0; !grace.expired() && ending_.size() < all_others; ++spins) {
    listen();
    throw_known();
    pause_in_wait(spins);
  }
}

void Failures::look_for_launcher() {
  // Whoever has lost its parent gets another.
  if (launcher_ == 0 || ::getppid() == launcher_) return;
  end_job_with(Error(ExitCode::kPeerLost,
                     fmt::format("{} (pid {}), which has started this rank, is gone {}",
                                 launcher_name(this_launch()), launcher_, world_.describe_phase()),
                     "its ranks end with it: see who has ended it (the kernel's out-of-memory "
                     "killer tells so in dmesg), and start the job anew"));
}

void Failures::look_for_lost() {
  look_for_launcher();
  const auto gone = watch_.gone();
  if (gone.empty()) return;
  // It may have told its failure before it ended.
  listen_for_cause(kCauseGrace);
  std::vector<std::string> names;
  for (const int other : gone) {
    note_gone(other);
    const auto& peer = world_.peers().at(static_cast<size_t>(other));
    names.push_back(fmt::format("{} pid {}", peer.describe(), peer.pid));
  }
  end_job_with(Error(ExitCode::kPeerLost,
                     fmt::format("{} {} gone {}", fmt::join(names, ", "),
                                 gone.size() == 1 ? "is" : "are", world_.describe_phase()),
                     "see its own message above; without one, look for a signal or the kernel's "
                     "out-of-memory killer (dmesg)"));
}

int Failures::pending_signal() const { return signal_noted_ ? 0 : termination_signal(); }

void Failures::look_into_signal(int signal_number) {
  look_for_lost();  // mpirun sends it when a rank is gone
  listen_for_cause(world_.nodes() > 1 ? kOtherHostsGrace : kCauseGrace);
  look_for_lost();
  const auto error = told_to_end_by(signal_number);
  if (!resident_) end_job_with(error);
  signal_noted_ = told_to_end_ = true;
  if (world_.rank() != 0) {
    WireError wire;
    wire.telling = Telling::kToldToEnd;
    tell(0, wire);
  }
  if (commanded_) fail(error);
}

Error Failures::told_to_end_by(int signal_number) const {
  return runtime_error(
      fmt::format("told to end by {} {}", signal_name(signal_number), world_.describe_phase()),
      fmt::format("{} sends it to all ranks when one has died or the job is "
                  "cancelled",
                  launcher_name(this_launch())));
}

void Failures::fail_without_last_order(Seconds waited) {
  const auto told = told_to_end_by(termination_signal());
  end_job_with(runtime_error(fmt::format("{}, and {} has given no last order for {}", told.what(),
                                         world_.describe(0), format_seconds(waited.count())),
                             told.hint()));
}

void Failures::end_job_with(const Error& error) {
  ends_job_ = true;
  fail(error);
}

void Failures::fail(const Error& error) {
  if (!failure_) failure_ = Known{world_.located(error), world_.now()};
  agreed_ = false;
  throw Error(failure_->error);
}

void Failures::announce_and_fail(const Error& error) {
  announce(error);
  fail(error);
}

void Failures::announce_and_end_job(const Error& error) {
  ends_job_ = true;
  announce_and_fail(error);
}

void Failures::announce(const Error& error) {
  agreed_ = false;
  ends_job_ = ends_job_ || recovering_;
  if (!told_) listen();
  if (!failure_) failure_ = Known{world_.located(error), world_.now()};
  if (told_) return;
  told_ = true;
  tell_all(verdict());
  world_.ring_node();
}

void Failures::tell_all(Telling telling) {
  WireError wire;
  wire.telling = telling;
  tell_all(wire);
}

/// All whose processes are not known to be gone.
void Failures::tell_all(const WireError& wire) {
  for (const int rank : watch_.gone()) note_gone(rank);
  for (int other = 0; other < world_.size(); ++other) {
    if (other != world_.rank() && !gone_.contains(other)) tell(other, wire);
  }
}

void Failures::note_gone(int rank) {
  gone_.insert(rank);
  lost_.insert(rank);
}

void Failures::tell(int to, WireError wire) {
  wire.epoch = world_.epoch();
  wire.ends_job = ends_job_;
  wire.recovers = recovering_;
  wire.rank_zero_lost = is_lost(0);
  std::copy_n(gone_.begin(), std::min(gone_.size(), wire.gone.size()), wire.gone.begin());
  outbox_.send(bytes_of(wire), to, kFailureTag, world_.control());
}

void Failures::begin_recovery() {
  end_command();
  recovering_ = true;
  failure_.reset();
  question_.reset();
  told_ = false;
}

void Failures::end_recovery() {
  recovering_ = false;
  agreed_ = false;
  lost_.clear();
  question_.reset();
  if (next_) take(*std::exchange(next_, std::nullopt));
}

void Failures::ask_rank_zero(const Error& late) {
  auto wire = to_wire(late, world_.now());
  wire.telling = Telling::kQuestion;
  tell(0, wire);
}

bool Failures::take_question() {
  const bool asked = question_ && !failure_;
  question_.reset();
  return asked;
}

void Failures::answer_question() {
  if (question_) fail(*question_);
}

}  // namespace awex
