#include "transfer/mpi_exchange.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "support/mpi_job.hpp"

using awex::test::job;

TEST_CASE("inference ranks exchange by role rank, trainers take no part") {
  const auto exchange = awex::make_mpi_exchange(job());
  const auto& me = job().peers()[static_cast<size_t>(job().rank())];
  CHECK((exchange == nullptr) == (me.role == awex::Role::kTrainer));
  if (exchange == nullptr) return;

  uint32_t count = 0;
  for (const auto& peer : job().peers()) count += peer.role == awex::Role::kInference ? 1 : 0;
  std::vector<std::vector<std::byte>> out(count);
  std::vector<std::vector<std::byte>> in(count);
  for (uint64_t round = 0; round < 3; ++round) {
    std::vector<awex::Message> sends;
    std::vector<awex::Message> receives;
    for (uint32_t peer = 0; peer < count; ++peer) {
      if (peer == me.role_rank) continue;
      // Odd sizes around MPI's limits between eager and rendezvous.
      const uint64_t bytes = round == 0 ? 1 : round == 1 ? 4097 : (5ULL << 20) + 3;
      out[peer].assign(bytes, static_cast<std::byte>(16 * me.role_rank + peer + round));
      in[peer].assign(bytes, std::byte{0xEE});
      sends.push_back({peer, out[peer].data(), bytes});
      receives.push_back({peer, in[peer].data(), bytes});
    }
    exchange->round(sends, receives);
    exchange->wait();
    for (uint32_t peer = 0; peer < count; ++peer) {
      const std::vector<std::byte> expected(
          in[peer].size(), static_cast<std::byte>(16 * peer + me.role_rank + round));
      CHECK(in[peer] == expected);
    }
  }
}
