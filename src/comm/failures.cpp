#include "comm/failures.hpp"

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "base/launch.hpp"
#include "base/wait.hpp"
#include "comm/mpi_check.hpp"
#include "comm/requests.hpp"

namespace awex {
namespace {

// Another rank's failure may still be on its way; it says more than SIGTERM or that rank's end.
constexpr Seconds kCauseGrace{0.1};

}  // namespace

void Failures::watch_processes() {
  watch_.clear();
  for (const int other : world_.node_ranks()) {
    if (other == world_.rank()) continue;
    watch_.add(other, world_.peers().at(static_cast<size_t>(other)).pid);
  }
}

void Failures::throw_known() const {
  if (failure_) throw Error(*failure_);
}

void Failures::listen() {
  while (true) {
    int found = 0;
    MPI_Status status{};
    AWEX_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, world_.comm(), &found, &status),
             "look for other ranks' failures");
    if (found == 0) return;
    WireError wire;
    AWEX_MPI(MPI_Recv(&wire, sizeof(wire), MPI_BYTE, status.MPI_SOURCE, kFailureTag, world_.comm(),
                      MPI_STATUS_IGNORE),
             "receive the failure of rank {}", status.MPI_SOURCE);
    if (wire.rank_zero_lost) lost_.insert(0);
    if (wire.telling == Telling::kQuestion) {
      question_ = from_wire(wire);
    } else if (!failure_) {
      failure_ = from_wire(wire);
      told_ = true;
      agreed_ = false;
    }
  }
}

/// Takes in what arrives for a moment; throws if it is a failure, which then is the cause.
void Failures::listen_for_cause() {
  const Deadline grace(kCauseGrace);
  for (uint64_t spins = 0; !grace.expired(); ++spins) {
    listen();
    throw_known();
    pause_in_wait(spins);
  }
}

void Failures::look_for_lost() {
  const auto gone = watch_.gone();
  if (gone.empty()) return;
  // It may have told its failure before it ended.
  listen_for_cause();
  give_up_on(gone);
  std::vector<std::string> names;
  for (const int other : gone) {
    const auto& peer = world_.peers().at(static_cast<size_t>(other));
    names.push_back(fmt::format("{} pid {}", peer.describe(), peer.pid));
  }
  fail(Error(ExitCode::kPeerLost,
             fmt::format("{} {} gone {}", fmt::join(names, ", "), gone.size() == 1 ? "is" : "are",
                         world_.describe_phase()),
             "see its own message above; without one, look for a signal or the kernel's "
             "out-of-memory killer (dmesg)"));
}

void Failures::look_for_signal(int signal_number) {
  listen_for_cause();
  look_for_lost();
  const char* name = signal_number == SIGINT ? "SIGINT" : "SIGTERM";
  fail(runtime_error(fmt::format("told to end by {} {}", name, world_.describe_phase()),
                     fmt::format("{} sends it to all ranks when one has died or the job is "
                                 "cancelled",
                                 launcher_name(this_launch()))));
}

void Failures::fail(const Error& error) {
  if (!failure_) failure_ = world_.located(error);
  agreed_ = false;
  throw Error(*failure_);
}

void Failures::announce_and_fail(const Error& error) {
  announce(error);
  fail(error);
}

void Failures::announce(const Error& error) {
  agreed_ = false;
  if (!told_) listen();
  if (!failure_) failure_ = world_.located(error);
  if (told_) return;
  told_ = true;
  auto wire = to_wire(*failure_, world_.now());
  wire.rank_zero_lost = is_lost(0);
  const auto gone = watch_.gone();
  for (int other = 0; other < world_.size(); ++other) {
    const bool hears = std::find(gone.begin(), gone.end(), other) == gone.end();
    if (other != world_.rank() && hears) tell(other, wire);
  }
}

void Failures::tell(int to, const WireError& wire) {
  auto& [message, request] = outbox_.emplace_back(wire, MPI_REQUEST_NULL);
  AWEX_MPI(MPI_Isend(&message, sizeof(message), MPI_BYTE, to, kFailureTag, world_.comm(), &request),
           "tell rank {} of a failure", to);
}

void Failures::push() {
  for (auto& [wire, request] : outbox_) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  }
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
