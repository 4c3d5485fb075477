#include "base/thread_pool.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

using namespace awex;

TEST_CASE("every index is worked on exactly once, for any number of threads and items") {
  for (const size_t threads : {0, 1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == std::max<size_t>(threads, 1));
    for (const size_t count : {0, 1, 2, 7, 1000}) {
      CAPTURE(threads);
      CAPTURE(count);
      std::vector<int> visits(count, 0);
      pool.for_each(count, [&](size_t i) { ++visits[i]; });
      CHECK(visits == std::vector<int>(count, 1));
    }
  }
}

TEST_CASE("what workers wrote is seen after for_each, round after round") {
  ThreadPool pool(4);
  std::vector<uint64_t> values(257, 0);
  for (int round = 0; round < 200; ++round) {
    pool.for_each(values.size(), [&](size_t i) { values[i] += i; });
  }
  const uint64_t sum = std::accumulate(values.begin(), values.end(), uint64_t{0});
  CHECK(sum == 200ULL * 256 * 257 / 2);
}

TEST_CASE("an exception is rethrown after the other items are done, and the pool goes on") {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  const auto work = [&](size_t i) {
    if (i == 5) throw std::runtime_error("item 5");
    ++done;
  };
  CHECK_THROWS_WITH_AS(pool.for_each(100, work), "item 5", std::runtime_error);
  CHECK(done == 99);
  pool.for_each(10, [&](size_t) { ++done; });
  CHECK(done == 109);
}

TEST_CASE("of many exceptions one is rethrown") {
  ThreadPool pool(4);
  CHECK_THROWS_AS(pool.for_each(64, [](size_t) { throw std::runtime_error("each"); }),
                  std::runtime_error);
}
