#include "transfer/exchange.hpp"

#include <set>

#include "transfer/mpi_exchange.hpp"
#if AWEX_WITH_CUDA
#include "transfer/nccl_exchange.hpp"
#include "transfer/peer_exchange.hpp"
#endif

namespace awex {
namespace {

/// Where nothing goes between devices.
class NoExchange final : public Exchange {
 public:
  NoExchange(Job& job, Kernels& kernels) : Exchange({}), job_(job), kernels_(kernels) {}

  void prepare(std::vector<MessageRound> rounds) override {
    if (rounds.empty()) return;
    throw runtime_error(fmt::format("{} rounds of messages are to be exchanged where no bytes go "
                                    "between devices",
                                    rounds.size()),
                        "this is a fault of awex-colocate: please report it");
  }
  void connect() override {}
  [[nodiscard]] std::byte* outbox(uint32_t /*peer*/, uint32_t /*turn*/) const override {
    return nullptr;
  }
  [[nodiscard]] const std::byte* inbox(uint32_t /*turn*/) const override { return nullptr; }
  void deliver(size_t /*round*/) override {}
  void wait() override { kernels_.wait("the device's work", job_.deadline(), job_); }
  [[nodiscard]] uint64_t staging_bytes() const override { return 0; }

 private:
  Job& job_;
  Kernels& kernels_;
};

#if AWEX_WITH_CUDA
std::unique_ptr<Exchange> make_cuda_exchange(Job& job, Device& device, Kernels& kernels,
                                             ExchangeKind kind, bool share_gpu) {
  if (kind != ExchangeKind::kNccl) {
    const auto obstacle = find_unreachable_peer(job, device);
    if (!obstacle) return make_peer_exchange(job, device, kernels);
    if (kind == ExchangeKind::kPeer) {
      job.fail_together(
          request_error("messages cannot be written into the receivers' memory: " + *obstacle,
                        "leave out --exchange peer: NCCL reaches every GPU"));
    }
  }
  if (share_gpu) let_nccl_share_gpu(job.rank());
  return make_nccl_exchange(job, device, kernels);
}
#endif

}  // namespace

std::vector<int> Exchange::ranks_met(size_t first, size_t end) const {
  std::set<int> ranks;
  for (size_t round = first; round < end; ++round) {
    for (const auto* messages : {&rounds_.at(round).sends, &rounds_.at(round).receives}) {
      for (const auto& message : *messages) ranks.insert(world_rank(message.peer));
    }
  }
  return {ranks.begin(), ranks.end()};
}

std::unique_ptr<Exchange> make_exchange(Job& job, Device& device, Kernels& kernels,
                                        [[maybe_unused]] ExchangeKind kind, bool needed,
                                        [[maybe_unused]] bool share_gpu) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  if (!needed) {
    if (me.role == Role::kTrainer) return nullptr;
    return std::make_unique<NoExchange>(job, kernels);
  }
#if AWEX_WITH_CUDA
  if (device.kind() == BackendKind::kCuda) {
    return make_cuda_exchange(job, device, kernels, kind, share_gpu);
  }
#endif
  return make_mpi_exchange(job, device);
}

}  // namespace awex
