// Budgets of a GPU: the booked bytes of several threads and processes never exceed them, and who
// waits goes on as soon as there is room.
#include "memory/ledger.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <new>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "memory/region.hpp"

namespace awex {
namespace {

constexpr uint64_t kMiB = 1ULL << 20;

/// Books and gives back random amounts, with nothing booked at the end. Whether the sum over all
/// users, counted apart, ever exceeded the budget.
bool exceeds_budget(MemoryLedger& ledger, std::atomic<uint64_t>& in_use, uint64_t seed) {
  std::mt19937_64 engine(seed);
  NoMonitor monitor;
  const Deadline deadline(Seconds(60));
  bool exceeded = false;
  for (int round = 0; round < 2000; ++round) {
    const uint64_t bytes = 1 + engine() % (ledger.budget_bytes() / 2);
    ledger.reserve(bytes, "a test", deadline, monitor);
    exceeded = exceeded || in_use.fetch_add(bytes) + bytes > ledger.budget_bytes();
    if (engine() % 8 == 0) std::this_thread::yield();
    in_use -= bytes;
    ledger.release(bytes);
  }
  return exceeded;
}

/// Words that child processes share.
struct SharedWords {
  LedgerWords words;
  std::atomic<uint64_t> in_use{0};
};

}  // namespace

TEST_CASE("processes together stay within the budget") {
  void* memory = ::mmap(nullptr, sizeof(SharedWords), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto* shared = new (memory) SharedWords;
  constexpr int kProcesses = 4;
  for (int child = 0; child < kProcesses; ++child) {
    if (::fork() != 0) continue;
    MemoryLedger ledger(shared->words, 1000);
    ::_exit(exceeds_budget(ledger, shared->in_use, static_cast<uint64_t>(child)) ? 1 : 0);
  }
  for (int child = 0; child < kProcesses; ++child) {
    int status = 0;
    REQUIRE(::wait(&status) > 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
  CHECK(shared->words.held == 0);
  CHECK(shared->words.peak <= 1000);
  CHECK(shared->words.peak > 500);
  ::munmap(memory, sizeof(SharedWords));
}

TEST_CASE("who waits in vain is told for what, and nothing stays booked") {
  LedgerWords words;
  MemoryLedger ledger(words, 10 * kMiB);
  NoMonitor monitor;
  ledger.reserve(8 * kMiB, "\"optimizer\"", Deadline(Seconds(60)), monitor);
  try {
    ledger.reserve(4 * kMiB, "\"weights\"", Deadline(Seconds(0.05)), monitor);
    FAIL("there is no room");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
    const std::string what = error.what();
    CHECK(what.find("\"weights\"") != std::string::npos);
    CHECK(what.find("budget") != std::string::npos);
  }
  CHECK(words.held == 8 * kMiB);
  ledger.release(8 * kMiB);
  CHECK(words.held == 0);
  CHECK(ledger.peak_bytes() == 8 * kMiB);
}

TEST_CASE("who waits in vain is told what is held at the deadline, not when the wait began") {
  LedgerWords words;
  MemoryLedger ledger(words, 10 * kMiB);
  NoMonitor nobody;
  ledger.reserve(8 * kMiB, "\"optimizer\"", Deadline(Seconds(60)), nobody);
  /// Gives some back as soon as somebody waits, too little for who waits.
  class Giver final : public WaitMonitor {
   public:
    explicit Giver(MemoryLedger& from) : ledger_(from) {}
    void poll() override {
      if (!std::exchange(gave_, true)) ledger_.release(2 * kMiB);
    }

   private:
    MemoryLedger& ledger_;
    bool gave_ = false;
  } giver(ledger);
  try {
    ledger.reserve(7 * kMiB, "\"weights\"", Deadline(Seconds(0.05)), giver);
    FAIL("there is no room");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("of which 6.29 MB are held") != std::string::npos);
  }
}

TEST_CASE("one region's memory flows to another within a budget that both together exceed") {
  constexpr uint64_t kBytes = 256 * kMiB;
  const auto device = make_host_device(0, 1);
  LedgerWords words;
  MemoryLedger ledger(words, kBytes + 80 * kMiB);
  Region optimizer(*device, "optimizer", Tag::kOptimizer, kBytes, &ledger);
  Region weights(*device, "weights", Tag::kWeights, kBytes, &ledger);
  const Deadline deadline(Seconds(60));
  NoMonitor monitor;
  optimizer.take(deadline, monitor);
  std::thread other([&] { weights.take(deadline, monitor); });
  const auto queue = device->make_queue();
  optimizer.offload(*queue, deadline, monitor);
  other.join();
  CHECK(weights.state() == RegionState::kResident);
  CHECK(words.held == weights.held_bytes());
  CHECK(ledger.peak_bytes() <= ledger.budget_bytes());
  // And back: the resume waits until the other has gone.
  std::thread back([&] { optimizer.resume(*queue, deadline, monitor); });
  weights.discard();
  back.join();
  CHECK(optimizer.state() == RegionState::kResident);
  CHECK(words.held == optimizer.held_bytes());
  CHECK(ledger.peak_bytes() <= ledger.budget_bytes());
}

TEST_CASE("a take that fails halfway gives its bookings back") {
  const auto device = make_host_device(0, 1);
  LedgerWords words;
  MemoryLedger ledger(words, 64 * kMiB + kMiB);
  Region region(*device, "weights", Tag::kWeights, 128 * kMiB, &ledger);
  NoMonitor monitor;
  CHECK_THROWS_AS(region.take(Deadline(Seconds(0.05)), monitor), Error);
  CHECK(region.state() == RegionState::kDiscarded);
  CHECK(region.held_bytes() == 0);
  CHECK(words.held == 0);
}

}  // namespace awex
