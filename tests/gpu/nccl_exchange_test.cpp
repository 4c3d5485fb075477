// All inference ranks share one GPU here, so NCCL goes over sockets: the path is tested, not its
// speed.
#include <doctest/doctest.h>

#include <vector>

#include "gpu/gpu_bench.hpp"
#include "support/mpi_job.hpp"
#include "transfer/nccl_exchange.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::job;
using awex::test::named_bytes;

namespace {

constexpr uint64_t kSlotBytes = 1 << 20;

/// Bytes from one rank to another in a round: of every pair another size, some none.
uint64_t message_bytes(uint64_t from, uint64_t to, uint64_t round) {
  return (from * 7919 + to * 104'729 + round * 1'299'709) % 5 == 0
             ? 0
             : 1 + (from * 60'013 + to * 10'007 + round * 300'007) % kSlotBytes;
}

std::vector<std::byte> message(uint64_t from, uint64_t to, uint64_t round) {
  return named_bytes(message_bytes(from, to, round), from << 20 | to << 10 | round);
}

uint64_t inference_ranks() {
  uint64_t count = 0;
  for (const auto& peer : job().peers()) count += peer.role == Role::kInference ? 1 : 0;
  return count;
}

/// Sends every other rank its message and checks what the others sent, which the kernels' stream
/// copies onwards right after the round.
void check_round(GpuBench& bench, Exchange& exchange, uint64_t me, uint64_t round) {
  const uint64_t ranks = inference_ranks();
  GpuBuffer outgoing(*bench.device, std::vector<std::byte>(ranks * kSlotBytes));
  const GpuBuffer incoming(*bench.device,
                           std::vector<std::byte>(ranks * kSlotBytes, std::byte{0xee}));
  const GpuBuffer unpacked(*bench.device,
                           std::vector<std::byte>(ranks * kSlotBytes, std::byte{0xdd}));
  std::vector<Message> sends;
  std::vector<Message> receives;
  std::vector<std::byte> expected(ranks * kSlotBytes, std::byte{0xee});
  for (uint64_t peer = 0; peer < ranks; ++peer) {
    if (peer == me) continue;
    const auto out = message(me, peer, round);
    const auto in = message(peer, me, round);
    const auto slot = static_cast<uint32_t>(peer);
    outgoing.write(peer * kSlotBytes, out);
    std::copy(in.begin(), in.end(),
              expected.begin() + static_cast<std::ptrdiff_t>(peer * kSlotBytes));
    if (!out.empty()) sends.push_back({slot, outgoing.data() + peer * kSlotBytes, out.size()});
    if (!in.empty()) receives.push_back({slot, incoming.data() + peer * kSlotBytes, in.size()});
  }
  const StridedCopy copy{incoming.data(),    unpacked.data(),    1,
                         ranks * kSlotBytes, ranks * kSlotBytes, ranks * kSlotBytes};
  const auto unpack = bench.kernels->prepare_copies({&copy, 1});
  exchange.round(sends, receives);
  unpack->copy();
  exchange.wait();
  CHECK((unpacked.fetch() == expected));
}

}  // namespace

TEST_CASE("rounds bring every message to its peer, in order with the kernels") {
  const auto& me = job().peers()[static_cast<size_t>(job().rank())];
  let_nccl_share_gpu(static_cast<int>(me.role_rank));
  GpuBench bench;
  const auto exchange = make_nccl_exchange(job(), *bench.device, *bench.kernels);
  CHECK((exchange == nullptr) == (me.role == Role::kTrainer));
  if (exchange) {
    for (uint64_t round = 0; round < 6; ++round) {
      CAPTURE(round);
      check_round(bench, *exchange, me.role_rank, round);
    }
    exchange->round({}, {});
    exchange->wait();
  }
  job().agree(nullptr);
}
