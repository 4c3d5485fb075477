#include "transfer/move/mpi_exchange.hpp"

#include <memory>
#include <set>
#include <vector>

#include "transfer/move/staging.hpp"

namespace awex {
namespace {

class MpiExchange final : public Exchange {
 public:
  MpiExchange(Job& job, Device& device)
      : Exchange(ranks_of(job.peers(), Role::kInference)),
        job_(job),
        staging_(std::make_shared<Staging>(device)) {}

  void connect() override {
    std::set<uint32_t> to;
    std::set<uint32_t> from;
    for (const auto& round : rounds()) {
      for (const auto& message : round.sends) to.insert(message.peer);
      for (const auto& message : round.receives) from.insert(message.peer);
    }
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (const uint32_t peer : to) outgoing.push_back({world_rank(peer), {out(), 1}});
    for (const uint32_t peer : from) incoming.push_back({world_rank(peer), {in() + peer, 1}});
    job_.exchange(outgoing, incoming, "the first messages between inference ranks", staging_);
  }

  [[nodiscard]] std::byte* outbox(uint32_t /*turn*/) const override { return out(); }
  [[nodiscard]] const std::byte* inbox(uint32_t /*turn*/) const override { return in(); }

  void deliver(size_t round) override {
    std::vector<Outgoing> outgoing;
    for (const auto& [peer, offset, bytes] : rounds().at(round).sends) {
      outgoing.push_back({world_rank(peer), {out() + offset, bytes}});
    }
    std::vector<Incoming> incoming;
    for (const auto& [peer, offset, bytes] : rounds().at(round).receives) {
      incoming.push_back({world_rank(peer), {in() + offset, bytes}});
    }
    job_.exchange(outgoing, incoming, "the exchange of weights", staging_);
  }

  void wait() override { job_.poll(); }  // a round, and host kernels, are done on return
  [[nodiscard]] uint64_t staging_bytes() const override { return staging_->range().held_bytes(); }

 private:
  [[nodiscard]] std::byte* out() const { return staging_->buffer(0); }
  [[nodiscard]] std::byte* in() const { return staging_->buffer(1); }

  Job& job_;
  std::shared_ptr<Staging> staging_;  ///< The job keeps it while MPI may use it.
};

}  // namespace

std::unique_ptr<Exchange> make_mpi_exchange(Job& job, Device& device) {
  if (job.peers().at(static_cast<size_t>(job.rank())).role != Role::kInference) return nullptr;
  return std::make_unique<MpiExchange>(job, device);
}

}  // namespace awex
