#include "transfer/move/mpi_exchange.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "support/mpi_job.hpp"

using namespace awex;
using awex::test::job;

namespace {

/// Odd sizes around MPI's limits between eager and rendezvous.
constexpr uint64_t kSizes[] = {1, 4097, (1ULL << 20) + 3};
constexpr uint64_t kSlotBytes = 2ULL << 20;

std::byte named_byte(uint32_t from, uint32_t to, size_t round) {
  return static_cast<std::byte>(16 * from + to + round);
}

std::vector<MessageRound> rounds_of(uint32_t me, uint32_t ranks) {
  std::vector<MessageRound> rounds;
  for (uint32_t round = 0; round < std::size(kSizes); ++round) {
    auto& one = rounds.emplace_back();
    one.turn = round;
    for (uint32_t peer = 0; peer < ranks; ++peer) {
      if (peer == me) continue;
      one.sends.push_back({peer, (me + ranks - peer) % ranks * kSlotBytes, kSizes[round]});
      one.receives.push_back({peer, (peer + ranks - me) % ranks * kSlotBytes, kSizes[round]});
    }
  }
  return rounds;
}

}  // namespace

TEST_CASE("inference ranks exchange by role rank, trainers take no part") {
  const auto device = make_host_device(0, 1);
  const auto exchange = make_mpi_exchange(job(), *device);
  const auto& me = job().peers()[static_cast<size_t>(job().rank())];
  CHECK((exchange == nullptr) == (me.role == Role::kTrainer));
  if (exchange == nullptr) return;

  uint32_t ranks = 0;
  for (const auto& peer : job().peers()) ranks += peer.role == Role::kInference ? 1 : 0;
  CHECK(exchange->staging_bytes() == kStagingBytes);
  exchange->prepare(rounds_of(me.role_rank, ranks));
  exchange->connect();
  for (size_t round = 0; round < exchange->rounds().size(); ++round) {
    const auto& [turn, sends, receives] = exchange->rounds()[round];
    exchange->open(round);
    for (const auto& [peer, offset, bytes] : sends) {
      std::fill_n(exchange->outbox(turn) + offset, bytes, named_byte(me.role_rank, peer, round));
    }
    exchange->deliver(round);
    for (const auto& [peer, offset, bytes] : receives) {
      const std::byte* begin = exchange->inbox(turn) + offset;
      CHECK(std::count(begin, begin + bytes, named_byte(peer, me.role_rank, round)) ==
            static_cast<std::ptrdiff_t>(bytes));
    }
    exchange->close(round);
  }
  exchange->wait();
}
