#include "transfer/mpi_exchange.hpp"

#include <utility>
#include <vector>

namespace awex {
namespace {

class MpiExchange final : public Exchange {
 public:
  MpiExchange(Job& job, std::vector<int> world_ranks)
      : job_(job), world_ranks_(std::move(world_ranks)) {}

  void round(std::span<const Message> sends, std::span<const Message> receives) override {
    std::vector<Outgoing> outgoing;
    for (const auto& [peer, data, bytes] : sends) {
      outgoing.push_back({world_ranks_.at(peer), {data, bytes}});
    }
    std::vector<Incoming> incoming;
    for (const auto& [peer, data, bytes] : receives) {
      incoming.push_back({world_ranks_.at(peer), {data, bytes}});
    }
    job_.exchange(outgoing, incoming, "the exchange of weights");
  }

  void wait() override { job_.poll(); }  // a round, and host kernels, are done on return

 private:
  Job& job_;
  std::vector<int> world_ranks_;  ///< Of the inference ranks, by role rank.
};

}  // namespace

std::unique_ptr<Exchange> make_mpi_exchange(Job& job) {
  if (job.peers().at(static_cast<size_t>(job.rank())).role != Role::kInference) return nullptr;
  std::vector<int> world_ranks;
  for (const auto& peer : job.peers()) {
    if (peer.role == Role::kInference) world_ranks.push_back(peer.rank);
  }
  return std::make_unique<MpiExchange>(job, std::move(world_ranks));
}

}  // namespace awex
