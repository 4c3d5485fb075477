// Commands that fail on some ranks at random, and what the job does then. AWEX_RUNS and AWEX_SEED
// choose how many and which.
#include <doctest/doctest.h>
#include <malloc.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/fixed_text.hpp"
#include "base/units.hpp"
#include "comm/job.hpp"
#include "support/mpi_job.hpp"

namespace {

using awex::Error;
using awex::ExitCode;
using awex::Incoming;
using awex::Outgoing;
using awex::Seconds;
using awex::test::job;

constexpr Seconds kPatience{60};
constexpr Seconds kShortTimeout{0.15};
constexpr Seconds kMoment{0.002};
constexpr auto kEvery = 32;  ///< One in so many commands has a rank that is late.

uint64_t setting(const char* variable, uint64_t usual) {
  const char* text = std::getenv(variable);
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}

enum class Deed { kGather, kSum, kMax, kAgree, kRing, kDirectRing, kAllPairs, kPoll };

enum class Way { kThrow, kHalfExchange, kStrayReceive, kVerdict, kLate };

struct Fault {
  int rank = 0;
  size_t step = 0;
  Way way = Way::kThrow;
};

/// What all ranks do until one fails; the same on all.
struct Plan {
  std::vector<Deed> deeds;
  std::vector<size_t> bytes;  ///< By deed.
  std::vector<Fault> faults;
  std::vector<int> slow_ms;  ///< By rank: how long it computes before it begins.
  bool is_late = false;
};

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  /// In [0, end).
  uint64_t below(uint64_t end) { return engine_() % end; }

 private:
  std::mt19937_64 engine_;
};

Plan make_plan(uint64_t seed, uint64_t run) {
  Dice dice(seed * 1000003 + run);
  Plan plan;
  const auto size = static_cast<uint64_t>(job().size());
  const auto steps = 1 + dice.below(5);
  for (uint64_t i = 0; i < steps; ++i) {
    plan.deeds.push_back(static_cast<Deed>(dice.below(8)));
    // Eager messages, those with a rendezvous, and sometimes large ones.
    constexpr std::array<uint64_t, 4> kMost{64, 4096, 100'000, 2'000'000};
    plan.bytes.push_back(1 + dice.below(kMost.at(dice.below(4))));
  }
  const auto faults = 1 + dice.below(2);
  for (uint64_t i = 0; i < faults; ++i) {
    plan.faults.push_back({static_cast<int>(dice.below(size)), dice.below(steps + 1),
                           static_cast<Way>(dice.below(4))});
  }
  for (uint64_t i = 0; i < size; ++i) plan.slow_ms.push_back(dice.below(4) == 0 ? 2 : 0);
  plan.is_late = run % kEvery == kEvery - 1;
  if (plan.is_late) plan.faults.front().way = Way::kLate;
  return plan;
}

std::byte pattern(int from, int to, size_t i, uint64_t epoch) {
  return static_cast<std::byte>(static_cast<size_t>(from) * 31 + static_cast<size_t>(to) * 7 + i +
                                epoch * 13);
}

/// Messages of `bytes` to `to` and from `from`, in memory that several may own.
class Letters {
 public:
  Letters(const std::vector<int>& to, const std::vector<int>& from, size_t bytes)
      : memory_(std::make_shared<std::vector<std::vector<std::byte>>>()) {
    const int me = job().rank();
    memory_->reserve(to.size() + from.size());
    for (const int other : to) {
      auto& message = memory_->emplace_back(bytes);
      for (size_t i = 0; i < bytes; ++i) message[i] = pattern(me, other, i, job().epoch());
      sends.push_back({other, message});
    }
    for (const int other : from) {
      receives.push_back({other, memory_->emplace_back(bytes, std::byte{0xEE})});
    }
  }

  void exchange(bool directly) const {
    job().exchange(sends, receives, "letters", directly ? memory_ : nullptr);
  }
  [[nodiscard]] uint64_t wrong() const {
    uint64_t count = 0;
    for (const auto& [from, bytes] : receives) {
      for (size_t i = 0; i < bytes.size(); ++i) {
        count += bytes[i] != pattern(from, job().rank(), i, job().epoch()) ? 1 : 0;
      }
    }
    return count;
  }

  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;

 private:
  std::shared_ptr<std::vector<std::vector<std::byte>>> memory_;
};

int next_rank() { return (job().rank() + 1) % job().size(); }
int previous_rank() { return (job().rank() + job().size() - 1) % job().size(); }

std::vector<int> others() {
  std::vector<int> ranks;
  for (int rank = 0; rank < job().size(); ++rank) {
    if (rank != job().rank()) ranks.push_back(rank);
  }
  return ranks;
}

Letters letters_of(Deed deed, size_t bytes) {
  if (deed == Deed::kAllPairs) return {others(), others(), bytes};
  return {{next_rank()}, {previous_rank()}, bytes};
}

void gather(size_t bytes) {
  const auto epoch = job().epoch();
  const auto size = static_cast<size_t>(job().size());
  const auto value = static_cast<size_t>(job().rank()) + epoch;
  const auto all = job().all_gather(std::vector(bytes, static_cast<std::byte>(value)), "bytes");
  uint64_t wrong = all.size() == bytes * size ? 0 : 1;
  for (size_t i = 0; i < all.size(); ++i) {
    wrong += all[i] != static_cast<std::byte>(i / bytes + epoch) ? 1 : 0;
  }
  CHECK(wrong == 0);
}

void reduce(Deed deed, size_t bytes) {
  const auto size = static_cast<uint64_t>(job().size());
  const auto epoch = job().epoch();
  std::vector<uint64_t> values(1 + bytes / 64, static_cast<uint64_t>(job().rank()) + epoch);
  const bool sums = deed == Deed::kSum;
  if (sums) {
    job().all_reduce_sum(values, "numbers");
  } else {
    job().all_reduce_max(values, "numbers");
  }
  const uint64_t expected = sums ? size * (size - 1) / 2 + size * epoch : size - 1 + epoch;
  CHECK(values == std::vector(values.size(), expected));
}

void act(Deed deed, size_t bytes) {
  switch (deed) {
    case Deed::kGather:
      return gather(bytes);
    case Deed::kSum:
    case Deed::kMax:
      return reduce(deed, bytes);
    case Deed::kAgree:
      return job().agree(nullptr);
    case Deed::kRing:
    case Deed::kDirectRing:
    case Deed::kAllPairs: {
      const auto letters = letters_of(deed, bytes);
      letters.exchange(deed == Deed::kDirectRing);
      CHECK(letters.wrong() == 0);
      return;
    }
    case Deed::kPoll:
      return job().poll();
  }
}

std::string text_of_fault(const Fault& fault) {
  return fmt::format("rank {} fails at step {}", fault.rank, fault.step);
}

[[noreturn]] void fail(const Fault& fault, Deed deed, size_t bytes) {
  const auto error = awex::runtime_error(text_of_fault(fault), "a hint");
  switch (fault.way) {
    case Way::kThrow:
      break;
    case Way::kHalfExchange: {
      // What the others send here stays on its way; and so does what is sent, if none receives.
      const bool is_exchange =
          deed == Deed::kRing || deed == Deed::kDirectRing || deed == Deed::kAllPairs;
      if (!is_exchange) job().set_timeout(kMoment);
      const auto letters = letters_of(deed, bytes);
      job().exchange(letters.sends, {}, "half of an exchange");
      break;
    }
    case Way::kStrayReceive: {
      // Fails in the midst of receiving what nobody sends: somebody else must fail, or this one.
      std::vector<std::byte> room(bytes);
      const Incoming nothing{job().rank(), room};
      job().set_timeout(kMoment);
      job().exchange({}, {&nothing, 1}, "what nobody sends");
      break;
    }
    case Way::kVerdict:
      if (deed == Deed::kAgree) job().agree(&error);
      break;
    case Way::kLate:
      // It computes: one that sleeps as long would be given up for lost.
      for (const awex::Deadline end(Seconds(0.3 + 0.2 * static_cast<double>(fault.step)));
           !end.expired();) {
      }
      break;
  }
  throw Error(error);
}

void run(const Plan& plan) {
  std::this_thread::sleep_for(
      std::chrono::milliseconds(plan.slow_ms[static_cast<size_t>(job().rank())]));
  for (size_t step = 0; step <= plan.deeds.size(); ++step) {
    const bool is_end = step == plan.deeds.size();
    const auto deed = is_end ? Deed::kAgree : plan.deeds[step];
    const auto bytes = is_end ? 1000 : plan.bytes[step];
    for (const auto& fault : plan.faults) {
      if (fault.rank == job().rank() && fault.step == step) fail(fault, deed, bytes);
    }
    act(deed, bytes);
  }
}

/// A cause as plain data, to compare over ranks.
struct Cause {
  int code;
  int rank;
  awex::FixedText<256> text;
  bool operator==(const Cause&) const = default;
};

void check_cause(const Plan& plan, const Error& error) {
  const Cause mine{static_cast<int>(error.code()), error.context().rank.value_or(-1),
                   awex::fixed_text<256>(error.what())};
  const auto all = job().all_gather_value(mine, "causes");
  for (const auto& other : all) CHECK(other == mine);
  if (error.code() == ExitCode::kDeadline) {
    const bool may_be = std::any_of(plan.faults.begin(), plan.faults.end(), [](const Fault& fault) {
      return fault.way != Way::kThrow && fault.way != Way::kVerdict;
    });
    CHECK_MESSAGE(may_be, error.what());
    return;
  }
  CHECK(error.code() == ExitCode::kRuntime);
  const bool is_planned =
      std::any_of(plan.faults.begin(), plan.faults.end(), [&](const Fault& fault) {
        return error.what() == text_of_fault(fault) && error.context().rank == fault.rank;
      });
  CHECK_MESSAGE(is_planned, error.what());
}

std::optional<Error> failure_of(const Plan& plan) {
  try {
    run(plan);
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

void fail_and_recover(const Plan& plan) {
  const auto epoch = job().epoch();
  if (plan.is_late) job().set_timeout(kShortTimeout);
  const auto failure = failure_of(plan);
  job().set_timeout(kPatience);
  CHECK(failure.has_value());
  const auto cause = job().recover(failure.value_or(awex::runtime_error("none failed")));
  CHECK(job().epoch() == epoch + 1);
  CHECK_FALSE(job().failure_is_agreed());
  check_cause(plan, cause);
  act(Deed::kGather, 100);
  act(Deed::kSum, 500);
  act(Deed::kAllPairs, 5000);
  MPI_Barrier(MPI_COMM_WORLD);  // past the job: else the next fault could come in between
}

size_t entries(const char* folder) {
  const std::filesystem::directory_iterator all(folder);
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

struct Usage {
  size_t descriptors = entries("/proc/self/fd");
  size_t threads = entries("/proc/self/task");
  size_t heap = ::mallinfo2().uordblks + ::mallinfo2().hblkhd;
};

}  // namespace

TEST_CASE("whatever fails on one or two ranks, all recover and go on") {
  const uint64_t runs = setting("AWEX_RUNS", job().size() > 4 ? 120 : 200);
  const uint64_t seed = setting("AWEX_SEED", 1);
  INFO("AWEX_SEED=" << seed);
  const uint64_t warm_up = std::min<uint64_t>(runs / 2, 60);  // MPI fills its free lists
  std::optional<Usage> before;
  for (uint64_t run = 0; run < runs; ++run) {
    INFO("run " << run);
    if (run == warm_up) before.emplace();
    fail_and_recover(make_plan(seed, run));
  }
  const Usage after;
  CHECK(after.descriptors == before->descriptors);
  CHECK(after.threads == before->threads);
  // They may still grow a little; what a failure leaves behind is a message of 3 KB at least.
  constexpr size_t kLeakOfEach = 2048;
  CHECK(after.heap < before->heap + kLeakOfEach * (runs - warm_up));
}

/// The neighbour of rank 1 sends `bytes`, and it receives `room`.
void send_what_does_not_fit(size_t bytes, size_t room, bool directly) {
  std::optional<Error> failure;
  const auto memory = std::make_shared<std::vector<std::byte>>(room, std::byte{0xEE});
  try {
    const Letters letters({next_rank()}, {previous_rank()}, bytes);
    const bool is_odd = job().rank() == 1;
    const Incoming receive = is_odd ? Incoming{previous_rank(), *memory} : letters.receives.front();
    if (directly && is_odd) {
      job().exchange({}, {&receive, 1}, "letters", memory);
    } else {
      job().exchange(letters.sends, {&receive, 1}, "letters");
    }
    job().agree(nullptr);
  } catch (const Error& error) {
    failure = error;
  }
  CHECK(failure.has_value());
  const auto cause = job().recover(failure.value_or(awex::runtime_error("none failed")));
  CHECK(cause.code() == ExitCode::kRuntime);
  CHECK(cause.context().rank == 1);
  const auto expected = fmt::format("cannot receive {} from rank 0, which has sent {}",
                                    awex::format_bytes(room), awex::format_bytes(bytes));
  CHECK(cause.what() == expected);
  CHECK(std::count(memory->begin(), memory->end(), std::byte{0xEE}) ==
        static_cast<std::ptrdiff_t>(room));
  act(Deed::kAllPairs, 5000);
  MPI_Barrier(MPI_COMM_WORLD);  // past the job: else the next failure could come in between
}

TEST_CASE("a message that does not fit into its room is a failure to recover from") {
  // Sent at once, with a rendezvous, and copied by one process from the other's memory.
  for (const size_t bytes : {100, 5'000, 100'000, 1'000'000}) {
    for (const size_t room : {bytes / 10, bytes - 1, bytes + 1}) {
      for (const bool directly : {false, true}) {
        INFO(bytes << " bytes into " << room << std::string(directly ? " directly" : ""));
        send_what_does_not_fit(bytes, room, directly);
      }
    }
  }
}

TEST_CASE("who is late because it waits itself is named with whom it waits for") {
  if (job().size() < 3) return;
  constexpr Seconds kTimeout{1};
  const int me = job().rank();
  job().set_timeout(kTimeout);
  job().agree(nullptr);
  std::optional<Error> failure;
  try {
    std::byte letter{};
    const auto from = [&](int other) {
      const Incoming incoming{other, {&letter, 1}};
      job().exchange({}, {&incoming, 1}, "a letter");
    };
    // Rank 2 is the first to give up, on rank 1, which waits for rank 0.
    if (me == 0) {
      for (const awex::Deadline end(2 * kTimeout); !end.expired();) {
      }
    } else if (me == 1) {
      std::this_thread::sleep_for(kTimeout / 2);
      from(0);
    } else if (me == 2) {
      from(1);
    }
    job().agree(nullptr);
  } catch (const Error& error) {
    failure = error;
  }
  job().set_timeout(kPatience);
  CHECK(failure.has_value());
  const Error cause = job().recover(failure.value_or(awex::runtime_error("nothing failed")));
  CHECK(cause.code() == ExitCode::kDeadline);
  const std::string text = cause.what();
  CHECK(text.find(job().describe(1) + " has not taken part in 'a letter'") != std::string::npos);
  CHECK(text.find("; " + job().describe(0) + " came to the recovery") != std::string::npos);
}

TEST_CASE("what begins after a failure takes no message of the work that failed") {
  constexpr size_t kBytes = 100;
  for (int run = 0; run < 20; ++run) {
    try {
      if (job().rank() == 0) {
        (void)job().announce_failure(awex::runtime_error("fails with messages under way"));
      }
      const Letters letters({next_rank()}, {previous_rank()}, kBytes);
      letters.exchange(/*directly=*/false);
      job().agree(nullptr);
    } catch (const Error& error) {
      std::vector<std::byte> room(1);
      const Incoming receive{previous_rank(), room};
      CHECK_THROWS_WITH(job().exchange({}, {&receive, 1}, "another letter"), error.what());
      (void)job().recover(error);
    }
    act(Deed::kAllPairs, 5000);
    MPI_Barrier(MPI_COMM_WORLD);
  }
}
