#include "comm/job.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <numeric>

#include "support/mpi_job.hpp"

namespace {

using awex::Error;
using awex::ExitCode;
using awex::test::job;

/// What agree throws on this rank, or nothing.
std::optional<Error> outcome_of(const Error* mine) {
  try {
    job().agree(mine);
  } catch (const Error& e) {
    return e;
  }
  return std::nullopt;
}

void check_same_everywhere(const std::optional<Error>& outcome, ExitCode code,
                           std::optional<int> rank) {
  CHECK(outcome.has_value());
  CHECK(job().failure_is_agreed());
  if (!outcome) return;
  CHECK(outcome->code() == code);
  CHECK(outcome->context().rank == rank);
}

}  // namespace

TEST_CASE("every rank's values arrive in rank order") {
  struct Value {
    int rank;
    double square;
  };
  const int me = job().rank();
  const auto values = job().all_gather_value(Value{me, 0.5 * me * me}, "squares");
  CHECK(values.size() == static_cast<size_t>(job().size()));
  for (int rank = 0; rank < job().size(); ++rank) {
    CHECK(values[static_cast<size_t>(rank)].rank == rank);
    CHECK(values[static_cast<size_t>(rank)].square == 0.5 * rank * rank);
  }
}

TEST_CASE("sums wrap around at 64 bits and touch each value once") {
  const auto me = static_cast<uint64_t>(job().rank());
  const auto size = static_cast<uint64_t>(job().size());
  std::vector<uint64_t> values{me, 1, ~0ULL, 0};
  job().all_reduce_sum(values, "numbers");
  CHECK(values == std::vector<uint64_t>{size * (size - 1) / 2, size, 0 - size, 0});
}

TEST_CASE("a common clock starts at zero on all ranks") {
  job().synchronise_clocks();
  const auto times = job().all_gather_value(job().now(), "times");
  for (const double time : times) {
    CHECK(time >= 0);
    CHECK(time < 30);
  }
}

TEST_CASE("ranks are described with role, host and gpu") {
  const auto text = job().describe(0);
  CHECK(text == "rank 0 (trainer, host " + job().node().name() + ", gpu 0)");
  const auto context = job().context();
  CHECK(context.rank == job().rank());
  CHECK(context.host == job().node().name());
  CHECK(job().nodes() == 1);
  CHECK(job().node_rank() == job().rank());  // all are on one node
  for (int rank = 0; rank < job().size(); ++rank) CHECK(job().node_of(rank) == job().node());
}

TEST_CASE("agreement on success throws nowhere") {
  job().set_phase("success");
  CHECK_FALSE(outcome_of(nullptr).has_value());
  CHECK_FALSE(job().failure_is_agreed());
}

TEST_CASE("one failing rank fails all, with its context") {
  for (int failing = 0; failing < job().size(); ++failing) {
    job().set_phase("one fails");
    Error error = awex::request_error(fmt::format("rank {} fails", failing), "a hint")
                      .about_tensor("model.norm.weight");
    error.context().tag = "weights";
    const auto outcome = outcome_of(job().rank() == failing ? &error : nullptr);
    check_same_everywhere(outcome, ExitCode::kRequest, failing);
    if (!outcome) continue;
    CHECK(outcome->what() == fmt::format("rank {} fails", failing));
    CHECK(outcome->hint() == "a hint");
    CHECK(outcome->context().tensor == "model.norm.weight");
    CHECK(outcome->context().tag == "weights");
    CHECK(outcome->context().phase == "one fails");
    CHECK(outcome->context().host == job().peers()[static_cast<size_t>(failing)].node.name());
    CHECK(outcome->context().role == role_name(job().peers()[static_cast<size_t>(failing)].role));
  }
}

TEST_CASE("of several failures the one that is no consequence is the cause") {
  const int last = job().size() - 1;
  job().set_phase("several fail");
  const bool is_cause = job().rank() == last;
  const Error error(is_cause ? ExitCode::kMismatch : ExitCode::kDeadline, "a failure");
  check_same_everywhere(outcome_of(&error), ExitCode::kMismatch, last);
}

TEST_CASE("what all ranks find is of nobody, or of the rank that is to blame") {
  const auto fail_together = [](const Error& error) -> std::optional<Error> {
    try {
      job().fail_together(error);
    } catch (const Error& thrown) {
      return thrown;
    }
  };
  job().set_phase("compare");
  const auto common = fail_together(Error(ExitCode::kMismatch, "differs").about_tag("weights"));
  check_same_everywhere(common, ExitCode::kMismatch, std::nullopt);
  CHECK(common->context().phase == "compare");
  CHECK(common->context().tag == "weights");
  CHECK(common->context().host + common->context().role + common->context().gpu == "");
  for (int guilty = 0; guilty < job().size(); ++guilty) {
    job().set_phase("compare");
    Error error(ExitCode::kMismatch, "differs");
    error.context() = job().context_of(guilty);
    const auto outcome = fail_together(error);
    check_same_everywhere(outcome, ExitCode::kMismatch, guilty);
    const auto& peer = job().peers()[static_cast<size_t>(guilty)];
    CHECK(outcome->context().phase == "compare");
    CHECK(outcome->context().host == peer.node.name());
    CHECK(outcome->context().gpu == std::to_string(peer.device.index));
    CHECK(outcome->context().role == role_name(peer.role));
  }
}

TEST_CASE("the job goes on after an agreed failure") {
  const Error error = awex::runtime_error("all fail");
  CHECK(outcome_of(&error).has_value());
  uint64_t one = 1;
  job().all_reduce_sum({&one, 1}, "after a failure");
  CHECK(one == static_cast<uint64_t>(job().size()));
  CHECK_FALSE(job().failure_is_agreed());
}

TEST_CASE("messages between all pairs arrive whole and in order") {
  const int me = job().rank();
  const int size = job().size();
  const auto pattern = [](int from, int to, size_t i) {
    return static_cast<std::byte>(static_cast<size_t>(from) * 31 + static_cast<size_t>(to) * 7 + i);
  };
  const auto length = [](int from, int to) { return static_cast<size_t>(1 + from * 70000 + to); };
  std::vector<std::vector<std::byte>> out;
  std::vector<std::vector<std::byte>> in;
  std::vector<awex::Outgoing> sends;
  std::vector<awex::Incoming> receives;
  for (int other = 0; other < size; ++other) {
    if (other == me) continue;
    auto& message = out.emplace_back(length(me, other));
    for (size_t i = 0; i < message.size(); ++i) message[i] = pattern(me, other, i);
    auto& room = in.emplace_back(length(other, me), std::byte{0xEE});
    sends.push_back({other, message});
    receives.push_back({other, room});
  }
  job().exchange(sends, receives, "all pairs");
  uint64_t wrong = 0;
  for (const auto& [from, bytes] : receives) {
    for (size_t i = 0; i < bytes.size(); ++i) wrong += bytes[i] != pattern(from, me, i) ? 1 : 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("polling costs well under a microsecond") {
  constexpr int kCalls = 40'000;
  // Of the processor: ranks share cores here, with other tests. At its best, as they share caches
  // too.
  double least = 1;
  for (int round = 0; round < 5; ++round) {
    const std::clock_t before = std::clock();
    for (int i = 0; i < kCalls; ++i) job().poll();
    least = std::min(least, static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
  }
  CHECK(least / kCalls < 5e-6);
}
