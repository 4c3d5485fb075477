// A resident job between its commands: orders of rank 0, and what is learnt while all rest.
// AWEX_REST_S chooses how long the rest lasts whose cost is measured.
#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <thread>
#include <vector>

#include "comm/job.hpp"
#include "support/failure_of.hpp"
#include "support/mpi_job.hpp"

namespace {

using awex::Error;
using awex::Seconds;
using awex::test::failure_of;
using awex::test::job;

/// What order `number` says: bytes that name it, as many as make messages of each kind.
std::vector<std::byte> order_of(uint64_t number) {
  constexpr std::array<size_t, 6> kSizes{0, 1, 100, 4096, 70'000, 3'000'000};
  std::vector<std::byte> order(kSizes.at(number % kSizes.size()));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::byte>(number * 7 + i * 13);
  return order;
}

/// Rank 0 between commands, which waits for its clients elsewhere.
void idle(Seconds longest) {
  for (const awex::Deadline end(longest); !end.expired();) {
    job().poll();
    std::this_thread::sleep_for(std::min(longest, Seconds(0.1)));
  }
}

void pass_on(const std::vector<std::byte>& order) {
  if (job().rank() == 0) return job().give_order(order);
  const auto taken = job().await_order();
  CHECK(taken == order);
}

/// Past the job: else the next fault could come while some are still busy with the last order.
void meet() { MPI_Barrier(MPI_COMM_WORLD); }

double processor_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// What a rank's rest was like.
struct Rest {
  double spent_s = 0;  ///< Of the processor.
  double end_s = 0;    ///< When the order was given, or had come.
};

}  // namespace

TEST_CASE("orders come whole and one after the other, whatever lies between") {
  for (uint64_t number = 0; number < 60; ++number) {
    pass_on(order_of(number));
    if (number % 3 == 0) continue;  // the next follows at once
    job().agree(nullptr);
    if (number % 20 == 10 && job().rank() == 0) idle(Seconds(0.03));
  }
}

TEST_CASE("a rest outlasts the timeout") {
  if (job().rank() == 0) {
    idle(Seconds(0.8));
    job().give_order({});
  } else {
    job().set_timeout(Seconds(0.1));
    (void)job().await_order();
    job().set_timeout(Seconds(60));
  }
  job().agree(nullptr);
}

TEST_CASE("orders begin soon, and resting costs next to nothing") {
  const char* setting = std::getenv("AWEX_REST_S");
  const double rest_s = setting != nullptr ? std::atof(setting) : 1;
  job().synchronise_clocks();
  const double before = processor_seconds();
  Rest mine;
  if (job().rank() == 0) {
    idle(Seconds(rest_s));
    mine.end_s = job().now();
    job().give_order(order_of(2));
  } else {
    (void)job().await_order();
    mine.end_s = job().now();
  }
  mine.spent_s = processor_seconds() - before;
  const auto rests = job().all_gather_value(mine, "what the rest has cost");
  for (const auto& rest : rests) {
    const double late_s = rest.end_s - rests.front().end_s;
    MESSAGE(fmt::format("{:.3f} % of a core in {} s, begun {:.2f} ms after the order",
                        100 * rest.spent_s / rest_s, rest_s, 1e3 * late_s));
    // Busy waiting takes all of it; the bounds leave room for a machine that does other work.
    CHECK(rest.spent_s < 0.03 + 0.02 * rest_s);
    CHECK(late_s < 2);
  }
}

TEST_CASE("a failure is told to all that rest, and orders come after the recovery") {
  for (int failing = 0; failing < job().size(); ++failing) {
    const auto epoch = job().epoch();
    const auto failure = failure_of([&] {
      if (job().rank() == failing) {
        std::this_thread::sleep_for(std::chrono::milliseconds(40));
        throw awex::runtime_error(fmt::format("rank {} fails at rest", failing));
      }
      if (job().rank() == 0) idle(Seconds(30));
      (void)job().await_order();
    });
    CHECK(failure.has_value());
    const auto cause = job().recover(failure.value_or(awex::runtime_error("none failed")));
    CHECK(cause.what() == fmt::format("rank {} fails at rest", failing));
    CHECK(job().epoch() == epoch + 1);
    pass_on(order_of(4));
    meet();
  }
}

TEST_CASE("an interrupt fails what waits on its rank, and is recovered from") {
  for (int interrupted = 0; interrupted < job().size(); ++interrupted) {
    pass_on(order_of(2));
    meet();
    const auto failure = failure_of([&] {
      const awex::Deadline soon(Seconds(0.03));
      if (job().rank() == interrupted) {
        job().set_interrupt([&] {
          if (soon.expired()) throw awex::runtime_error("the client has gone away");
        });
      }
      // Nobody ends this wait.
      job().wait_for([] { return false; }, [] { return awex::Late{{0}, "come"}; });
    });
    CHECK(failure.has_value());
    // It is not called while the job recovers.
    const auto cause = job().recover(failure.value_or(awex::runtime_error("none failed")));
    job().set_interrupt(nullptr);
    CHECK(cause.what() == std::string("the client has gone away"));
    CHECK(cause.context().rank == interrupted);
    meet();
  }
}

TEST_CASE("an order that a rank has not taken when the job fails never comes") {
  for (uint64_t number = 0; number < 12; ++number) {
    const auto failure = failure_of([&] {
      pass_on(order_of(number));  // some may be in the midst of it when the last rank fails
      const bool takes = job().rank() % 2 == 1;
      if (job().rank() == job().size() - 1) throw awex::runtime_error("fails with an order unread");
      if (job().rank() == 0) job().give_order(order_of(number + 1));
      if (takes) (void)job().await_order();
      idle(Seconds(30));
    });
    CHECK(failure.has_value());
    (void)job().recover(failure.value_or(awex::runtime_error("none failed")));
    pass_on(order_of(number + 2));
    meet();
  }
}
