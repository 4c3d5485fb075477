#pragma once

#include <mpi.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/node_identity.hpp"
#include "base/units.hpp"
#include "comm/bell.hpp"
#include "comm/mpi_start.hpp"
#include "comm/peer.hpp"
#include "comm/process_watch.hpp"
#include "comm/requests.hpp"

namespace awex {

/// The ranks of a job: MPI's start, who is who and where, what the job does now, and so how errors
/// name all this. Knows no failures; waits for nobody once it is made.
class MpiWorld {
 public:
  using Clock = std::chrono::steady_clock;

  /// Initialises MPI and learns the nodes of all ranks. Ends the process with exit code 4 when that
  /// takes longer than `timeout` and the start's allowance. Collective.
  MpiWorld(int* argc, char*** argv, Seconds timeout, const MpiStart& start);

  /// For what must reach the others also when a command has failed; the job's alone, so that
  /// messages never mix with another library's. All else goes through `traffic`.
  [[nodiscard]] MPI_Comm control() const { return control_; }
  /// The messages of this epoch, on a communicator that every epoch makes anew.
  [[nodiscard]] Traffic& traffic() { return traffic_; }
  /// How often the job has recovered. Control messages carry it.
  [[nodiscard]] uint64_t epoch() const { return epoch_; }
  /// Begins the next epoch, whose messages go through `comm`, a duplicate of MPI_COMM_WORLD; the
  /// last one must have no message left.
  void begin_epoch(MPI_Comm comm);
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }
  /// How long a wait may take.
  [[nodiscard]] Seconds timeout() const { return timeout_; }
  void set_timeout(Seconds timeout) { timeout_ = timeout; }

  [[nodiscard]] const NodeIdentity& node_of(int rank) const {
    return nodes_.at(static_cast<size_t>(rank));
  }
  /// World ranks of this node.
  [[nodiscard]] const std::vector<int>& node_ranks() const { return node_ranks_; }
  /// How many nodes there are.
  [[nodiscard]] int nodes() const { return node_count_; }

  /// Whether the other ranks of this node wake this one when there is something to learn. Not the
  /// node's first rank, which has to ask MPI on their behalf.
  [[nodiscard]] bool is_rung() const { return is_rung_; }
  [[nodiscard]] const Bell& bell() const { return bell_; }
  /// Wakes the other ranks of this node.
  void ring_node() const noexcept;
  [[nodiscard]] bool is_first_of_node() const { return node_ranks_.front() == rank_; }

  void set_peers(std::vector<Peer> peers);
  /// Empty before set_peers.
  [[nodiscard]] const std::vector<Peer>& peers() const { return peers_; }

  void set_phase(std::string phase) { phase_ = std::move(phase); }
  [[nodiscard]] const std::string& phase() const { return phase_; }

  /// Seconds since the common start.
  [[nodiscard]] double now() const { return Seconds(Clock::now() - start_).count(); }
  void set_start(Clock::time_point start) { start_ = start; }

  /// "rank 3 (inference, host a, gpu 1)", or "rank 3" before set_peers.
  [[nodiscard]] std::string describe(int rank) const;
  /// "in phase 'transfer'".
  [[nodiscard]] std::string describe_phase() const;
  [[nodiscard]] ErrorContext context_of(int rank) const;
  /// The error with what it does not say of its place filled in from this rank's.
  [[nodiscard]] Error located(Error error) const;
  /// "rank 3 (inference, host a, gpu 1) has not finished phase 'transfer' after 30 s".
  [[nodiscard]] Error late(const std::vector<int>& ranks, const std::string& deed) const {
    return late(ranks, deed, timeout_);
  }
  [[nodiscard]] Error late(const std::vector<int>& ranks, const std::string& deed,
                           Seconds waited) const;
  /// What a rank's process does; nothing where this rank cannot see it.
  [[nodiscard]] std::optional<ProcessActivity> activity_of(int rank) const;
  /// Those of this node whose processes are stopped by a signal or a debugger.
  [[nodiscard]] std::vector<int> stopped_ranks() const;
  /// Names them, as a further sentence of a message: a stopped rank is seldom the one that is
  /// waited for directly.
  [[nodiscard]] std::string describe_stopped() const;

  /// Finalises MPI. Collective.
  void finalise();

 private:
  void connect(int* argc, char*** argv);
  void learn_nodes();
  void learn_bells();
  [[nodiscard]] std::string describe_all(const std::vector<int>& ranks) const;

  Seconds timeout_;
  MPI_Comm control_ = MPI_COMM_NULL;
  Traffic traffic_;
  uint64_t epoch_ = 0;
  int rank_ = 0;
  int size_ = 1;
  std::vector<NodeIdentity> nodes_;  ///< By rank.
  std::vector<int> node_ranks_;
  int node_count_ = 1;
  Bell bell_;
  std::vector<BellName> bells_;  ///< By rank.
  bool is_rung_ = false;
  std::vector<Peer> peers_;
  std::string phase_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace awex
