// Updates that fail at random, each followed, in the same processes, by one that must commit what
// an undisturbed job commits. AWEX_RUNS and AWEX_SEED choose how many and which, AWEX_BACKEND=cuda
// lets all ranks be on one GPU.
#include <doctest/doctest.h>
#include <malloc.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cycle/session.hpp"
#include "support/flipped_bit.hpp"
#include "support/mpi_job.hpp"
#include "support/refused_memory.hpp"

namespace awex {
namespace {

using test::flip_bit;
using test::job;

constexpr Seconds kPatience{60};
constexpr Seconds kShortTimeout{0.2};

uint64_t setting(const char* variable, uint64_t usual) {
  const char* text = std::getenv(variable);
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}

enum class Kind { kThrow, kLate, kDamage, kRefusal };

/// A phase of an update.
struct Place {
  const char* phase;
  const char* role;
  const char* tag;
};

constexpr Place kPlaces[] = {{"digest", "trainer", "weights"},
                             {"offload", "trainer", "optimizer"},
                             {"resume", "inference", "weights"},
                             {"transfer", "inference", "weights"},
                             {"unmap", "inference", "weights"},
                             {"verify", "all", "weights"},
                             {"commit", "all", "weights"},
                             {"offload", "trainer", "weights"},
                             {"resume", "inference", "kv_cache"},
                             {"discard", "inference", "kv_cache"},
                             {"discard", "inference", "weights"},
                             {"resume", "trainer", "optimizer"},
                             {"resume", "trainer", "weights"},
                             {"map", "all", "weights"},
                             {"train", "trainer", ""}};
// Where damage is found: what comes back from host memory is proven, and so are all bytes with
// --verify full. Where memory is taken.
constexpr Place kDamaged[] = {{"resume", "trainer", "optimizer"},
                              {"resume", "trainer", "weights"},
                              {"compare", "inference", "weights"}};
constexpr Place kTaken[] = {{"resume", "inference", "weights"},
                            {"resume", "inference", "kv_cache"},
                            {"resume", "trainer", "optimizer"},
                            {"resume", "trainer", "weights"}};

struct Fault {
  Kind kind = Kind::kThrow;
  int rank = 0;
  Place place{};
};

/// The same on every rank. The lower half of them are trainers.
Fault choose_fault(uint64_t seed, uint64_t run) {
  std::mt19937_64 engine(seed * 1000003 + run);
  const auto pick = [&](const auto& places) { return places[engine() % std::size(places)]; };
  Fault fault;
  // Deadlines are to pass: they are fewer.
  fault.kind = run % 8 == 7 ? Kind::kLate : Kind::kThrow;
  if (run % 4 == 1) fault.kind = Kind::kDamage;
  if (run % 4 == 2) fault.kind = Kind::kRefusal;
  const auto half = static_cast<uint64_t>(job().size()) / 2;
  fault.rank = static_cast<int>(engine() % (2 * half));
  fault.place = pick(kPlaces);
  if (fault.kind == Kind::kDamage) fault.place = pick(kDamaged);
  if (fault.kind == Kind::kRefusal) fault.place = pick(kTaken);
  if (fault.kind == Kind::kDamage || fault.kind == Kind::kRefusal) {
    const bool trains = std::string(fault.place.role) == "trainer";
    fault.rank = static_cast<int>(engine() % half + (trains ? 0 : half));
  }
  return fault;
}

class Disturber final : public CycleObserver {
 public:
  void arm(const Fault& fault) {
    fault_ = fault;
    has_acted_ = false;
  }
  /// Takes back what is still to come, and what would last.
  void disarm() {
    fault_.reset();
    test::allow_memory();
    if (Region* region = std::exchange(damaged_, nullptr)) flip_bit(*region);
  }
  [[nodiscard]] bool has_acted() const { return has_acted_; }

  void phase_started(const PhaseEvent& event) override {
    if (!fault_ || fault_->rank != job().rank()) return;
    const auto& place = fault_->place;
    if (event.phase != place.phase || event.role != place.role || event.tag != place.tag) return;
    has_acted_ = true;
    switch (fault_->kind) {
      case Kind::kThrow:
        throw runtime_error("a fault on purpose");
      case Kind::kLate:
        // The others give up before: after a longer time if they wait for rank 0.
        // It computes: one that sleeps as long would be given up for lost.
        for (const Deadline end(Seconds(job().rank() == 0 ? 3.0 : 1.5)); !end.expired();) {
        }
        return;
      case Kind::kDamage:
        flip_bit(*event.region);
        // A transfer writes inference's weights anew; the trainer's state must be repaired.
        if (event.role == "trainer") damaged_ = event.region;
        return;
      case Kind::kRefusal:
        test::refuse_memory();
        return;
    }
  }
  void phase_finished(const PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}

 private:
  std::optional<Fault> fault_;
  Region* damaged_ = nullptr;
  bool has_acted_ = false;
};

Request request_for(uint64_t versions) {
  Request request;
  const auto half = std::to_string(job().size() / 2);
  request.job.model = "preset:tiny-dense";
  request.job.trainer = "megatron:tp=" + half;
  request.job.inference = "sglang:tp=1";
  const char* backend = std::getenv("AWEX_BACKEND");
  const bool is_cuda = backend != nullptr && std::string(backend) == "cuda";
  request.job.backend = is_cuda ? BackendKind::kCuda : BackendKind::kHost;
  request.job.share_gpu = is_cuda && half != "1";
  request.job.timeout = kPatience;
  request.job.kv_cache_bytes = 1 << 20;
  request.job.measure_limits = false;
  request.command.versions = versions;
  return request;
}

/// The digests of the versions of a job that nobody disturbs.
std::vector<uint64_t> undisturbed(uint64_t versions) {
  Request request = request_for(versions);
  request.job.offload = false;
  Disturber nobody;
  const auto report = run_command(request, job(), nobody);
  CHECK_FALSE(report.error);
  std::vector<uint64_t> digests;
  for (const auto& version : report.versions) {
    if (version.digest) digests.push_back(version.digest->model);
  }
  CHECK(digests.size() == versions);
  return digests;
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

/// A session that is disturbed again and again.
class Patient {
 public:
  explicit Patient(ExchangeKind exchange, std::vector<uint64_t> digests)
      : request_(request_for(1)), digests_(std::move(digests)) {
    request_.job.exchange = exchange;
    report_ = begin_report(request_, job());
    session_.emplace(request_, job(), disturber_, report_, built_in_engines());
    session_->start();
  }

  void fail_and_recover(const Fault& fault) {
    const CommandOptions command{
        Command::kUpdate, 1,
        std::string(fault.place.phase) == "compare" ? Verify::kFull : Verify::kDigest};
    disturber_.arm(fault);
    if (fault.kind == Kind::kLate) job().set_timeout(kShortTimeout);
    const auto failure = failure_of(command);
    job().set_timeout(kPatience);
    CHECK(failure.has_value());
    const bool acts = fault.rank == job().rank() && fault.kind != Kind::kLate;
    if (acts) CHECK(disturber_.has_acted());
    const Error cause = session_->recover(failure.value_or(runtime_error("nothing failed")));
    disturber_.disarm();
    check_cause(fault, cause);
    // What the fault comes before the training step of leaves the trainer where it was.
    const bool may_have_trained = std::string(fault.place.phase) == "train";
    update_well(may_have_trained);
  }

  void update_well(bool may_have_trained) {
    report_.versions.erase(report_.versions.begin(), report_.versions.end() - 1);
    session_->run({});
    const auto& version = report_.versions.back();
    CHECK(version.committed);
    CHECK(report_.committed_version == version.version);
    CHECK_FALSE(report_.poisoned);
    const uint64_t digest = version.digest ? version.digest->model : 0;
    if (may_have_trained && digest != digests_.at(steps_)) ++steps_;
    CHECK(digest == digests_.at(steps_));
    ++steps_;
    MPI_Barrier(MPI_COMM_WORLD);  // past the job: else the next fault could come in between
  }

  void begin() {
    session_->run({});
    ++steps_;
  }

 private:
  std::optional<Error> failure_of(const CommandOptions& command) {
    try {
      session_->run(command);
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }

  static void check_cause(const Fault& fault, const Error& cause) {
    struct Cause {
      int code;
      int rank;
      bool operator==(const Cause&) const = default;
    };
    const Cause mine{static_cast<int>(cause.code()), cause.context().rank.value_or(-1)};
    for (const auto& other : job().all_gather_value(mine, "causes")) CHECK(other == mine);
    switch (fault.kind) {
      case Kind::kThrow:
        CHECK(cause.what() == std::string("a fault on purpose"));
        CHECK(cause.context().rank == fault.rank);
        return;
      case Kind::kLate:
        CHECK(cause.code() == ExitCode::kDeadline);
        return;
      case Kind::kDamage:
        CHECK(cause.code() == ExitCode::kMismatch);
        CHECK(cause.context().rank == fault.rank);
        return;
      case Kind::kRefusal:
        CHECK(cause.code() == ExitCode::kRuntime);
        CHECK(cause.context().rank == fault.rank);
        if (fault.rank == job().rank()) CHECK(test::has_refused_memory());
        return;
    }
  }

  Request request_;
  std::vector<uint64_t> digests_;
  Disturber disturber_;
  Report report_;
  std::optional<Session> session_;
  uint64_t steps_ = 0;  ///< Of training.
};

void disturb(ExchangeKind exchange, uint64_t runs) {
  const uint64_t seed = setting("AWEX_SEED", 1);
  Patient patient(exchange, undisturbed(2 * runs + 3));
  patient.begin();
  const uint64_t warm_up = runs / 2;
  std::optional<Usage> before;
  for (uint64_t run = 0; run < runs; ++run) {
    const auto fault = choose_fault(seed, run);
    INFO("AWEX_SEED=" << seed << " run " << run << ": " << static_cast<int>(fault.kind)
                      << " of rank " << fault.rank << " in " << std::string(fault.place.phase)
                      << " " << std::string(fault.place.role) << " "
                      << std::string(fault.place.tag));
    if (run == warm_up) before.emplace();
    patient.fail_and_recover(fault);
  }
  const Usage after;
  CHECK(after.descriptors <= before->descriptors);
  CHECK(after.threads <= before->threads);
  constexpr size_t kLeakOfEach = 20'000;
  CHECK(after.heap < before->heap + kLeakOfEach * (runs - warm_up));
}

TEST_CASE("an update that fails is followed by one that commits the right weights") {
  disturb(ExchangeKind::kAuto, setting("AWEX_RUNS", 16));
}

TEST_CASE("the same where ranks write into each other's memory") {
  if (job().size() < 4) return;
  disturb(ExchangeKind::kPeer, setting("AWEX_RUNS", 8));
}

/// Fails one rank's start: when it begins, at the end of loading, or for memory that it is refused.
class StartDisturber final : public CycleObserver {
 public:
  enum class Moment { kBegin, kLoaded, kFirstMemory, kSecondMemory };

  StartDisturber(Moment moment, bool is_armed) : moment_(moment), is_armed_(is_armed) {
    const bool refuses = moment == Moment::kFirstMemory || moment == Moment::kSecondMemory;
    if (is_armed && refuses) test::refuse_memory({}, moment == Moment::kSecondMemory ? 1 : 0);
  }
  void run_started(const Report& /*report*/) override { fail_at(Moment::kBegin); }
  void loaded() override { fail_at(Moment::kLoaded); }
  void phase_started(const PhaseEvent& /*event*/) override {}
  void phase_finished(const PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}

 private:
  void fail_at(Moment moment) const {
    if (is_armed_ && moment_ == moment) throw runtime_error("a fault on purpose");
  }

  Moment moment_;
  bool is_armed_;
};

/// A start in which `guilty` fails. Returns what this rank is told.
std::optional<Error> fail_to_start(StartDisturber::Moment moment, int guilty,
                                   ExchangeKind exchange) {
  Request request = request_for(1);
  request.job.exchange = exchange;
  request.job.warm_host_memory = true;
  StartDisturber disturber(moment, job().rank() == guilty);
  Report report = begin_report(request, job());
  try {
    Session session(request, job(), disturber, report, built_in_engines());
    session.start();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

TEST_CASE("a start that fails ends alike on all ranks and leaves nothing behind") {
  job().become_resident();
  using Moment = StartDisturber::Moment;
  // Inference takes no memory before its first command.
  constexpr Moment kMoments[] = {Moment::kBegin, Moment::kLoaded, Moment::kFirstMemory,
                                 Moment::kSecondMemory};
  std::optional<Usage> before;
  for (int round = 0; round < 2; ++round) {
    if (round == 1) before.emplace();
    for (int guilty = 0; guilty < job().size(); ++guilty) {
      const bool trains = guilty < job().size() / 2;
      const Moment moment = kMoments[trains ? (guilty + round + 2) % 4 : (guilty + round) % 2];
      const auto exchange = guilty % 2 == 0 ? ExchangeKind::kAuto : ExchangeKind::kPeer;
      INFO("round " << round << ": rank " << guilty << " at " << static_cast<int>(moment));
      const auto failure = fail_to_start(moment, guilty, exchange);
      test::allow_memory();
      CHECK(failure.has_value());
      CHECK(job().failure_is_agreed());
      if (!failure) continue;
      CHECK(failure->code() == ExitCode::kRuntime);
      CHECK(failure->context().rank == guilty);
    }
  }
  const Usage after;
  CHECK(after.descriptors <= before->descriptors);
  CHECK(after.threads <= before->threads);
  Disturber nobody;
  CHECK_FALSE(run_command(request_for(1), job(), nobody).error);
}

}  // namespace
}  // namespace awex
