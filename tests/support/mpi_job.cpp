#include "support/mpi_job.hpp"

#include <unistd.h>

namespace awex::test {

std::vector<Peer> gather_peers(Job& job) {
  const auto pids = job.all_gather_value(::getpid(), "pids");
  const int trainers = (job.size() + 1) / 2;
  std::vector<Peer> peers;
  for (int rank = 0; rank < job.size(); ++rank) {
    const bool trains = rank < trainers;
    Peer peer;
    peer.rank = rank;
    peer.role = trains ? Role::kTrainer : Role::kInference;
    peer.role_rank = static_cast<uint32_t>(trains ? rank : rank - trainers);
    peer.pid = pids[static_cast<size_t>(rank)];
    peer.node = job.node_of(rank);
    peer.device.index = static_cast<int>(peer.role_rank);
    peer.device.uuid[0] = static_cast<uint8_t>(peer.role_rank);
    peers.push_back(peer);
  }
  return peers;
}

}  // namespace awex::test
