#include "attach/library/arena.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/checked.hpp"
#include "support/failure_of.hpp"

namespace {

using namespace awex;
using attach::Arena;

constexpr uint64_t kStep = 512;

/// A map of steps, and where the best place is: found by looking at each of them.
class NaiveArena {
 public:
  explicit NaiveArena(uint64_t bytes) : used_(bytes / kStep, false) {}

  /// The first of the smallest free places that are large enough; nothing where there is none.
  [[nodiscard]] std::optional<uint64_t> allocate(uint64_t bytes) {
    const uint64_t steps = ceil_div(bytes, kStep);
    std::optional<uint64_t> best;
    uint64_t best_size = 0;
    for (uint64_t begin = 0; begin < used_.size();) {
      uint64_t end = begin;
      while (end < used_.size() && !used_[end]) ++end;
      if (end - begin >= steps && (!best || end - begin < best_size)) {
        best = begin;
        best_size = end - begin;
      }
      begin = end + 1;
    }
    if (best) fill(*best * kStep, bytes, true);
    return best ? std::optional(*best * kStep) : std::nullopt;
  }
  void fill(uint64_t offset, uint64_t bytes, bool used) {
    std::fill_n(used_.begin() + static_cast<ptrdiff_t>(offset / kStep), ceil_div(bytes, kStep),
                used);
  }
  [[nodiscard]] uint64_t used_bytes() const {
    return static_cast<uint64_t>(std::count(used_.begin(), used_.end(), true)) * kStep;
  }

 private:
  std::vector<bool> used_;
};

std::byte* address(uint64_t value) {
  return reinterpret_cast<std::byte*>(value);  // NOLINT(performance-no-int-to-ptr)
}

TEST_CASE("the arena places everything where a naive one does") {
  std::mt19937_64 random(20261127);
  for (const uint64_t bytes : {uint64_t{1000}, 64 * kStep, 200 * kStep + 100}) {
    auto* const begin = address(1 << 20);
    Arena arena("weights", begin, bytes);
    arena.set_mapped(true);
    NaiveArena oracle(bytes);
    std::vector<std::pair<uint64_t, uint64_t>> held;
    for (int i = 0; i < 4000; ++i) {
      if (random() % 5 < 3) {
        const uint64_t wanted = 1 + random() % (random() % 4 == 0 ? 20 * kStep : 3 * kStep);
        const auto place = oracle.allocate(wanted);
        if (!place) {
          CHECK_THROWS_AS(static_cast<void>(arena.allocate(wanted)), Error);
          continue;
        }
        const auto* const got = arena.allocate(wanted);
        REQUIRE(got == begin + *place);
        held.emplace_back(*place, wanted);
      } else if (!held.empty()) {
        std::swap(held[random() % held.size()], held.back());
        oracle.fill(held.back().first, held.back().second, false);
        REQUIRE(arena.free(begin + held.back().first));
        CHECK_FALSE(arena.free(begin + held.back().first));
        held.pop_back();
      }
      REQUIRE(arena.used_bytes() == oracle.used_bytes());
    }
    for (const auto& [offset, size] : held) CHECK(arena.free(begin + offset));
    const uint64_t whole = bytes / kStep * kStep;
    CHECK(arena.allocate(whole) == begin);
  }
}

TEST_CASE("an arena says why it has nothing") {
  Arena arena("optimizer", address(512), 4 * kStep);
  auto failure = test::failure_of([&] { static_cast<void>(arena.allocate(1)); });
  REQUIRE(failure);
  CHECK(std::string(failure->what()).find("is not mapped now") != std::string::npos);
  arena.set_mapped(true);
  CHECK_THROWS_AS(static_cast<void>(arena.allocate(UINT64_MAX)), Error);
  static_cast<void>(arena.allocate(1));
  failure = test::failure_of([&] { static_cast<void>(arena.allocate(4 * kStep)); });
  REQUIRE(failure);
  CHECK(std::string(failure->what()) ==
        "cannot allocate 2.05 kB of optimizer: 512 B of 2.05 kB are used, and the largest free "
        "place has 1.54 kB");
  CHECK_FALSE(arena.free(address(511)));
  CHECK_FALSE(arena.free(address(512 + 4 * kStep)));
  CHECK_FALSE(arena.free(address(512 + kStep)));
}

TEST_CASE("threads share an arena") {
  Arena arena("weights", address(4096), 64 * kStep);
  arena.set_mapped(true);
  const auto work = [&] {
    for (int i = 0; i < 2000; ++i) {
      auto* const one = arena.allocate(1 + static_cast<uint64_t>(i) % (4 * kStep));
      auto* const two = arena.allocate(1);
      if (one == two || !arena.free(one) || !arena.free(two)) std::abort();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work);
  for (auto& thread : threads) thread.join();
  CHECK(arena.used_bytes() == 0);
}

}  // namespace
