#include "comm/mpi_world.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "base/checked.hpp"
#include "base/launch.hpp"
#include "base/wait.hpp"
#include "comm/mpi_check.hpp"

namespace awex {
namespace {

// What MPI itself may need to end, on top of a short timeout.
constexpr Seconds kEndAllowance{5};
constexpr const char* kEndedInStart = "error: told to end by a signal while MPI starts\n";

}  // namespace

MpiWorld::MpiWorld(int* argc, char*** argv, Seconds timeout, const MpiStart& start)
    : timeout_(timeout) {
  const auto here = read_node_identity();
  const Seconds allowed = timeout + start.allowance;
  // Of ranks that end together one has to say so.
  const bool speaks = start.launched_rank.value_or(0) == 0;
  end_at_once_on_signals(speaks ? kEndedInStart : "", start.report_when_ended);
  const Watchdog watchdog(
      allowed, ExitCode::kDeadline,
      fmt::format("{} on host {} has not got through MPI's start after {}: some rank of the "
                  "job has not started, or MPI's network setup is wrong",
                  start.launched_rank ? fmt::format("rank {}", *start.launched_rank) : "a rank",
                  here.name(), format_seconds(allowed.count())),
      start.report);
  connect(argc, argv);
  nodes_.resize(static_cast<size_t>(size_));
  nodes_.at(static_cast<size_t>(rank_)) = here;
  learn_nodes();
  learn_bells();
}

void MpiWorld::connect(int* argc, char*** argv) {
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw runtime_error("cannot initialise MPI: MPI_Init_thread failed",
                        fmt::format("start the program with {}", start_command(this_launch(), 2)));
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_FUNNELED) {
    throw runtime_error("this MPI does not allow programs with threads (MPI_THREAD_FUNNELED)");
  }
  MPI_Comm first = MPI_COMM_NULL;
  AWEX_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &control_), "make the job's own communicator");
  AWEX_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &first), "make the first epoch's communicator");
  AWEX_MPI(MPI_Comm_rank(control_, &rank_), "learn this rank");
  AWEX_MPI(MPI_Comm_size(control_, &size_), "learn the number of ranks");
  traffic_.begin(first, size_);
}

void MpiWorld::learn_nodes() {
  AWEX_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, nodes_.data(),
                         narrow<int>(sizeof(NodeIdentity)), MPI_BYTE, control_),
           "gather the nodes of all ranks");
  for (int other = 0; other < size_; ++other) {
    if (node_of(other) == node_of(rank_)) node_ranks_.push_back(other);
  }
  node_count_ = narrow<int>(std::set(nodes_.begin(), nodes_.end()).size());
}

void MpiWorld::learn_bells() {
  bells_.resize(static_cast<size_t>(size_));
  bells_.at(static_cast<size_t>(rank_)) = bell_.name();
  AWEX_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, bells_.data(),
                         narrow<int>(sizeof(BellName)), MPI_BYTE, control_),
           "gather the bells of all ranks");
  // Only what has been heard once can be relied on.
  if (is_first_of_node()) ring_node();
  AWEX_MPI(MPI_Barrier(control_), "wait until all bells have been rung");
  is_rung_ = bell_.wait(Seconds(0));
}

void MpiWorld::ring_node() const noexcept {
  for (const int other : node_ranks_) {
    if (other != rank_) bell_.ring(bells_[static_cast<size_t>(other)]);
  }
}

void MpiWorld::begin_epoch(MPI_Comm comm) {
  auto last = traffic_.comm();
  AWEX_MPI(MPI_Comm_free(&last), "free the communicator of epoch {}", epoch_);
  traffic_.begin(comm, size_);
  ++epoch_;
}

void MpiWorld::set_peers(std::vector<Peer> peers) {
  if (peers.size() != static_cast<size_t>(size_)) {
    throw runtime_error(fmt::format("a job of {} ranks was told of {} peers", size_, peers.size()));
  }
  peers_ = std::move(peers);
}

std::string MpiWorld::describe(int rank) const {
  return peers_.empty() ? fmt::format("rank {}", rank)
                        : peers_.at(static_cast<size_t>(rank)).describe();
}

std::string MpiWorld::describe_phase() const {
  return phase_.empty() ? "while the job starts" : fmt::format("in phase '{}'", phase_);
}

std::string MpiWorld::describe_all(const std::vector<int>& ranks) const {
  constexpr size_t kMostNamed = 8;
  std::vector<std::string> names;
  for (const int missing : ranks) {
    if (names.size() == kMostNamed) {
      names.push_back(fmt::format("{} more", ranks.size() - kMostNamed));
      break;
    }
    names.push_back(describe(missing));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

ErrorContext MpiWorld::context_of(int rank) const {
  ErrorContext context;
  context.rank = rank;
  context.phase = phase_;
  if (!peers_.empty()) {
    const auto& peer = peers_.at(static_cast<size_t>(rank));
    context.gpu = std::to_string(peer.device.index);
    context.role = role_name(peer.role);
  }
  // Of others only what was told with their role: before, errors say just the rank.
  if (!peers_.empty() || rank == rank_) context.host = node_of(rank).name();
  return context;
}

Error MpiWorld::located(Error error) const {
  auto& there = error.context();
  if (there.rank) return error;
  auto here = context_of(rank_);
  here.tag = there.tag;
  here.tensor = there.tensor;
  if (!there.phase.empty()) here.phase = there.phase;
  there = std::move(here);
  return error;
}

Error MpiWorld::late(const std::vector<int>& ranks, const std::string& deed, Seconds waited) const {
  return located(Error(ExitCode::kDeadline,
                       fmt::format("{} {} not {} after {}{}", describe_all(ranks),
                                   ranks.size() == 1 ? "has" : "have", deed,
                                   format_seconds(waited.count()), describe_stopped()),
                       kDeadlineHint));
}

std::optional<ProcessActivity> MpiWorld::activity_of(int rank) const {
  if (peers_.empty() || node_of(rank) != node_of(rank_)) return std::nullopt;
  return awex::activity_of(peers_[static_cast<size_t>(rank)].pid);
}

std::vector<int> MpiWorld::stopped_ranks() const {
  std::vector<int> stopped;
  if (peers_.empty()) return stopped;
  for (const int other : node_ranks_) {
    if (is_stopped(peers_[static_cast<size_t>(other)].pid)) stopped.push_back(other);
  }
  return stopped;
}

std::string MpiWorld::describe_stopped() const {
  std::string text;
  for (const int other : stopped_ranks()) {
    const auto& peer = peers_[static_cast<size_t>(other)];
    text += fmt::format("; {} (pid {}) is stopped by a signal or a debugger", peer.describe(),
                        peer.pid);
  }
  return text;
}

void MpiWorld::finalise() {
  const Seconds allowed = timeout_ + kEndAllowance;
  const Watchdog watchdog(
      allowed, ExitCode::kDeadline,
      fmt::format("{}: MPI_Finalize is not done after {}: another rank does not come to its end",
                  describe(rank_), format_seconds(allowed.count())));
  auto last = traffic_.comm();
  AWEX_MPI(MPI_Comm_free(&last), "free the last epoch's communicator");
  AWEX_MPI(MPI_Comm_free(&control_), "free the job's communicator");
  AWEX_MPI(MPI_Finalize(), "finalise MPI");
}

}  // namespace awex
