// All inference ranks share one GPU here, so NCCL goes over sockets: the order of rounds is tested,
// not their speed.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "gpu/gpu_bench.hpp"
#include "support/mpi_job.hpp"
#include "transfer/move/nccl_exchange.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::job;
using awex::test::named_bytes;

namespace {

/// Long messages come first, then many short ones: more rounds than are queued at once.
constexpr uint32_t kLongTurns = 11;
constexpr uint32_t kTurns = kLongTurns + 150;
constexpr uint64_t kLongBytes = 2 << 20;
constexpr uint64_t kShortBytes = 8 << 10;

constexpr uint64_t most_bytes(uint64_t turn) {
  return turn < kLongTurns ? kLongBytes : kShortBytes;
}

/// Bytes from one rank to another in a turn: of every pair another size, some none.
uint64_t message_bytes(uint64_t from, uint64_t to, uint64_t turn) {
  const uint64_t mixed = from * 7919 + to * 104'729 + turn * 1'299'709;
  if (mixed % 5 == 0) return 0;
  if (mixed % 3 == 0) return most_bytes(turn);
  return 1 + (from * 60'013 + to * 10'007 + turn * 300'007) % most_bytes(turn);
}

std::vector<std::byte> message(uint64_t from, uint64_t to, uint64_t turn, uint64_t pass) {
  return named_bytes(message_bytes(from, to, turn), from << 30 | to << 20 | turn << 10 | pass);
}

uint32_t inference_ranks() {
  uint32_t count = 0;
  for (const auto& peer : job().peers()) count += peer.role == Role::kInference ? 1 : 0;
  return count;
}

/// As ranks meet in a large job: first all peers at odd distances, then those at even ones, whose
/// messages begin again with turn 0 and take the places that others had.
std::vector<MessageRound> rounds_of(uint32_t me, uint32_t ranks) {
  std::vector<MessageRound> rounds;
  for (const uint32_t parity : {1U, 0U}) {
    for (uint32_t turn = 0; turn < kTurns; ++turn) {
      MessageRound round{turn, {}, {}};
      for (uint32_t distance = 1; distance < ranks; ++distance) {
        if (distance % 2 != parity) continue;
        const uint64_t offset = distance / 2 * kLongBytes;
        const uint32_t to = (me + distance) % ranks;
        const uint32_t from = (me + ranks - distance) % ranks;
        const uint64_t sent = message_bytes(me, to, turn);
        const uint64_t received = message_bytes(from, me, turn);
        if (sent > 0) round.sends.push_back({to, offset, sent});
        if (received > 0) round.receives.push_back({from, offset, received});
      }
      if (!round.sends.empty() || !round.receives.empty()) rounds.push_back(round);
    }
  }
  return rounds;
}

/// One round as its batches do it: what is sent comes from `outgoing` and what comes goes to
/// `incoming`, a message a slot.
struct ReadyRound {
  std::unique_ptr<CopyBatch> pack;
  std::unique_ptr<CopyBatch> unpack;
};

StridedCopy whole(const std::byte* from, std::byte* to, uint64_t bytes) {
  return {.from = from,
          .to = to,
          .rows = 1,
          .row_bytes = bytes,
          .from_stride = bytes,
          .to_stride = bytes};
}

/// Where a message of a turn lies on its way to or from a peer.
uint64_t slot(uint32_t ranks, uint32_t turn, uint32_t peer) {
  const uint64_t long_turns = std::min(turn, kLongTurns);
  const uint64_t short_turns = turn - long_turns;
  return (long_turns * kLongBytes + short_turns * kShortBytes) * ranks + peer * most_bytes(turn);
}

/// Goes through all rounds several times, in one go each, and compares all that came.
void check_exchange(GpuBench& bench, Exchange& exchange, uint32_t me) {
  const uint32_t ranks = inference_ranks();
  const uint64_t bytes = slot(ranks, kTurns, 0);
  exchange.prepare(rounds_of(me, ranks));
  exchange.connect();
  GpuBuffer outgoing(*bench.device, std::vector<std::byte>(bytes));
  GpuBuffer incoming(*bench.device, std::vector<std::byte>(bytes));
  std::vector<ReadyRound> ready;
  for (const auto& [turn, sends, receives] : exchange.rounds()) {
    std::vector<StridedCopy> packs;
    std::vector<StridedCopy> unpacks;
    for (const auto& m : sends) {
      packs.push_back(whole(outgoing.data() + slot(ranks, turn, m.peer),
                            exchange.outbox(turn) + m.offset, m.bytes));
    }
    for (const auto& m : receives) {
      unpacks.push_back(whole(exchange.inbox(turn) + m.offset,
                              incoming.data() + slot(ranks, turn, m.peer), m.bytes));
    }
    ready.push_back({bench.kernels->prepare_copies_on(Stream::kSend, packs),
                     bench.kernels->prepare_copies_on(Stream::kReceive, unpacks)});
  }
  for (uint64_t pass = 0; pass < 4; ++pass) {
    CAPTURE(pass);
    std::vector<std::byte> expected(bytes, std::byte{0xee});
    incoming.write(0, expected);
    for (const auto& [turn, sends, receives] : exchange.rounds()) {
      for (const auto& m : sends) {
        outgoing.write(slot(ranks, turn, m.peer), message(me, m.peer, turn, pass));
      }
      for (const auto& m : receives) {
        const auto in = message(m.peer, me, turn, pass);
        std::copy(in.begin(), in.end(),
                  expected.begin() + static_cast<std::ptrdiff_t>(slot(ranks, turn, m.peer)));
      }
    }
    bench.kernels->fork();
    for (size_t i = 0; i < ready.size(); ++i) {
      exchange.open(i);
      ready[i].pack->copy();
      exchange.deliver(i);
      ready[i].unpack->copy();
      exchange.close(i);
    }
    bench.kernels->join();
    exchange.wait();
    CHECK((incoming.fetch() == expected));
  }
}

}  // namespace

TEST_CASE("NCCL keeps more rounds in order than are queued at once, and turns that begin again") {
  const auto& me = job().peers()[static_cast<size_t>(job().rank())];
  let_nccl_share_gpu(static_cast<int>(me.role_rank));
  GpuBench bench;
  const auto exchange = make_nccl_exchange(job(), *bench.device, *bench.kernels);
  CHECK((exchange == nullptr) == (me.role == Role::kTrainer));
  if (exchange) check_exchange(bench, *exchange, me.role_rank);
  job().agree(nullptr);
}
