// All inference ranks share one GPU here: NCCL goes over sockets, and what is written into a peer's
// memory stays on the GPU. The paths are tested, not their speed.
#include <doctest/doctest.h>

#include "gpu/gpu_bench.hpp"
#include "plan/channels.hpp"
#include "support/mpi_job.hpp"
#include "support/remote_case.hpp"
#include "transfer/move/copies_in_rounds.hpp"
#include "transfer/move/nccl_exchange.hpp"
#include "transfer/move/peer_copies.hpp"
#include "transfer/move/peer_reach.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::job;
using awex::test::RemoteCase;

namespace {

const Peer& me() { return job().peers()[static_cast<size_t>(job().rank())]; }

uint32_t inference_ranks() {
  return static_cast<uint32_t>(ranks_of(job().peers(), Role::kInference).size());
}

/// Some ranks begin a pass that the last one does not come to; all break it off and go on.
void break_off(GpuBench& bench, RemoteCopies& copies) {
  bench.kernels->fork();
  if (me().role_rank + 1 < inference_ranks()) copies.copy();
  bench.kernels->join();
  copies.abort(job().deadline());
  copies.rebuild();
}

/// `all_bytes` are the long copies of a rank to all others.
void check_copies(GpuBench& bench, RemoteCopies& copies, uint64_t all_bytes) {
  CHECK(copies.staging_bytes() <= kStagingBytes);
  const uint32_t rank = me().role_rank;
  const RemoteCase one(inference_ranks(), all_bytes / inference_ranks());
  const auto buffer = [&](uint64_t bytes) {
    return GpuBuffer(*bench.device, std::vector<std::byte>(bytes));
  };
  test::RemoteCaseMemory<GpuBuffer> memory{buffer(one.from_bytes(rank)), buffer(one.to_bytes(rank)),
                                           buffer(one.from_bytes(rank)),
                                           buffer(one.to_bytes(rank))};
  test::RemoteCaseRun<GpuBuffer> run(copies, *bench.kernels, one, rank, memory);
  run.check();
  break_off(bench, copies);
  run.check();
}

}  // namespace

TEST_CASE("NCCL brings every byte to its peer, in order with the kernels") {
  let_nccl_share_gpu(static_cast<int>(me().role_rank));
  GpuBench bench;
  auto exchange = make_nccl_exchange(job(), *bench.device, *bench.kernels);
  CHECK((exchange == nullptr) == (me().role == Role::kTrainer));
  if (exchange) {
    CopiesInRounds copies(std::move(exchange), *bench.kernels);
    check_copies(bench, copies, 2 * kStagingBytes);
  }
  job().agree(nullptr);
}

TEST_CASE("bytes written into the peers' memory come whole and in order with the kernels") {
  GpuBench bench;
  const auto copies = make_peer_copies(job(), *bench.device, *bench.kernels);
  CHECK((copies == nullptr) == (me().role == Role::kTrainer));
  // So that every slot is used several times.
  if (copies) check_copies(bench, *copies, 4 * kSlotsBytes);
  job().agree(nullptr);
}

TEST_CASE("a device reaches itself, and none that this process does not see") {
  const GpuBench bench;
  const auto strangers = job().peers();  // the test's peers have devices of their own making
  const auto obstacle = find_unreachable_peer(job(), *bench.device);
  CHECK(obstacle.has_value() == (inference_ranks() > 1));
  if (obstacle) CHECK(obstacle->find("does not see the other's GPU") != std::string::npos);
  auto peers = strangers;
  for (auto& peer : peers) peer.device = bench.device->identity();
  job().set_peers(peers);
  CHECK_FALSE(find_unreachable_peer(job(), *bench.device).has_value());
  job().set_peers(strangers);
}
