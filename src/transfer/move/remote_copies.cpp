#include "transfer/move/remote_copies.hpp"

#include <string>
#include <utility>

#include "transfer/move/copies_in_rounds.hpp"
#include "transfer/move/mpi_exchange.hpp"
#include "transfer/move/peer_copies.hpp"
#include "transfer/move/peer_reach.hpp"
#if AWEX_WITH_CUDA
#include "transfer/move/nccl_exchange.hpp"
#endif

namespace awex {
namespace {

/// Where nothing goes between devices.
class NoRemoteCopies final : public RemoteCopies {
 public:
  NoRemoteCopies(Job& job, Kernels& kernels) : job_(job), kernels_(kernels) {}

  void prepare(const ExchangedCopies& copies, const PlacedMemory& /*trainer_weights*/,
               const PlacedMemory& /*own_weights*/) override {
    if (copies.empty()) return;
    throw runtime_error("bytes are to be exchanged where none go between devices",
                        "this is a fault of awex-colocate: please report it");
  }
  void connect() override {}
  void copy() override {}
  void compare() override {}
  void wait() override { kernels_.wait("the device's work", job_.deadline(), job_); }
  [[nodiscard]] std::optional<uint64_t> difference() const override { return std::nullopt; }
  void abort(const Deadline& /*deadline*/) override {}
  void rebuild() override {}
  [[nodiscard]] uint64_t staging_bytes() const override { return 0; }

 private:
  Job& job_;
  Kernels& kernels_;
};

/// Null for no exchange.
std::unique_ptr<RemoteCopies> in_rounds(std::unique_ptr<Exchange> exchange, Kernels& kernels) {
  if (!exchange) return nullptr;
  return std::make_unique<CopiesInRounds>(std::move(exchange), kernels);
}

void fail_unreachable(Job& job, const std::string& obstacle, const std::string& hint) {
  job.fail_together(
      request_error("weights cannot be written into the receivers' memory: " + obstacle, hint));
}

std::unique_ptr<RemoteCopies> make_host_copies(Job& job, Device& device, Kernels& kernels,
                                               ExchangeKind kind) {
  if (kind != ExchangeKind::kPeer) return in_rounds(make_mpi_exchange(job, device), kernels);
  const auto obstacle = find_unreachable_peer(job, device);
  if (obstacle)
    fail_unreachable(job, *obstacle, "leave out --exchange peer: MPI reaches all ranks");
  return make_peer_copies(job, device, kernels);
}

#if AWEX_WITH_CUDA
std::unique_ptr<RemoteCopies> make_cuda_copies(Job& job, Device& device, Kernels& kernels,
                                               ExchangeKind kind, bool share_gpu) {
  if (kind != ExchangeKind::kNccl) {
    const auto obstacle = find_unreachable_peer(job, device);
    if (!obstacle) return make_peer_copies(job, device, kernels);
    if (kind == ExchangeKind::kPeer) {
      fail_unreachable(job, *obstacle, "leave out --exchange peer: NCCL reaches every GPU");
    }
  }
  if (share_gpu) let_nccl_share_gpu(job.rank());
  return in_rounds(make_nccl_exchange(job, device, kernels), kernels);
}
#endif

}  // namespace

std::unique_ptr<RemoteCopies> make_remote_copies(Job& job, Device& device, Kernels& kernels,
                                                 ExchangeKind kind, bool needed,
                                                 [[maybe_unused]] bool share_gpu) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  if (!needed) {
    if (me.role == Role::kTrainer) return nullptr;
    return std::make_unique<NoRemoteCopies>(job, kernels);
  }
#if AWEX_WITH_CUDA
  if (device.kind() == BackendKind::kCuda) {
    return make_cuda_copies(job, device, kernels, kind, share_gpu);
  }
#endif
  return make_host_copies(job, device, kernels, kind);
}

}  // namespace awex
