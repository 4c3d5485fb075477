// The engine's library through its C interface, against a rank that a test plays.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attach/attached_engine.hpp"
#include "attach/fake_rank.hpp"
#include "base/units.hpp"
#include "model/digest.hpp"
#include "support/failure_of.hpp"

namespace {

using namespace awex;
using namespace awex::attach;
using test::AttachedEngine;
using test::FakeRank;
using test::TemporaryDirectory;
using FromEngine = ToRank::Kind;
using FromRank = ToEngine::Kind;

constexpr uint64_t kWeightsBytes = 3 << 20;
/// More than one chunk.
constexpr uint64_t kOptimizerBytes = 66ULL << 20;

bool says(const std::string& part) {
  const std::string text = awex_error();
  CAPTURE(text);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

Error a_failure(ExitCode code = ExitCode::kMismatch) {
  Error error(code, "it went wrong", "mend it");
  error.context().rank = 2;
  error.context().role = "inference";
  return error;
}

/// A trainer's rank: weights and an optimizer.
struct TrainerRank : FakeRank {
  explicit TrainerRank(const TemporaryDirectory& job, int device = 0,
                       uint64_t optimizer_bytes = kWeightsBytes)
      : FakeRank(job.path(), Role::kTrainer, device) {
    own(Tag::kWeights, kWeightsBytes, true);
    own(Tag::kOptimizer, optimizer_bytes, true);
    welcome.places = {{"a", DType::kBf16, 4, 8, 0}, {"b", DType::kF8E4M3, 1, 16, 256}};
  }
};

struct InferenceRank : FakeRank {
  explicit InferenceRank(const TemporaryDirectory& job) : FakeRank(job.path(), Role::kInference) {
    own(Tag::kWeights, kWeightsBytes, false);
    own(Tag::kKvCache, kWeightsBytes, false);
  }
  void take_and_map(Tag tag) {
    owned(tag).take(0, owned(tag).chunking().count());
    if (const auto error = map(tag)) throw Error(*error);
  }
  void give(Tag tag) {
    if (const auto error = release(tag)) throw Error(*error);
    owned(tag).release(0, owned(tag).chunking().count());
  }
};

/// What the callbacks have been told, in order: "before 0 at 3".
struct Told {
  explicit Told(awex_engine* engine) {
    awex_before_release(engine, before, this);
    awex_after_resume(engine, after, this);
    awex_weights_changed(engine, changed, this);
  }
  static int note(void* user, const char* what, awex_tag tag, uint64_t version) {
    auto& told = *static_cast<Told*>(user);
    told.lines.push_back(fmt::format("{} {} at {}", what, static_cast<int>(tag), version));
    return told.answer;
  }
  static int before(void* user, awex_tag tag, uint64_t version) {
    return note(user, "before", tag, version);
  }
  static int after(void* user, awex_tag tag, uint64_t version) {
    return note(user, "after", tag, version);
  }
  static int changed(void* user, awex_tag tag, uint64_t version) {
    return note(user, "changed", tag, version);
  }
  int answer = 0;
  std::vector<std::string> lines;
};

awex_tensor tensor(const char* name, awex_tag tag, uint64_t offset = 0) {
  return {name, "bf16", 4, 8, offset, tag};
}

bool holds_only(const awex_memory_info& memory, int value) {
  const auto* const bytes = static_cast<const std::byte*>(memory.address);
  return std::all_of(bytes, bytes + memory.bytes,
                     [&](std::byte byte) { return byte == std::byte(value); });
}

TEST_CASE("a trainer attaches, hands its memory over and takes it back, at the same addresses") {
  const TemporaryDirectory job;
  TrainerRank rank(job, 0, kOptimizerBytes);
  rank.welcome.reattached = true;
  rank.welcome.version = 6;
  rank.welcome.kept_bytes = 5;
  const auto kept = test::file_with("hello");
  std::byte seen{};
  rank.begin([&] {
    rank.hello = rank.accept();
    rank.say(rank.welcome, {rank.page_file.get(), kept.get()});
    CHECK_FALSE(rank.map(Tag::kWeights));
    CHECK_FALSE(rank.map(Tag::kOptimizer));
    rank.seal = rank.hear(FromEngine::kSeal);
    ToEngine refusal;
    refusal.kind = FromRank::kRefused;
    refusal.error = a_failure(ExitCode::kRequest);
    rank.say(refusal);
    rank.seal = rank.hear(FromEngine::kSeal);
    rank.say(FromRank::kSealed);
    CHECK(rank.hear(FromEngine::kKeep).kept_bytes == 3);
    CHECK(rank.last.fds.size() == 1);
    CHECK(rank.hear(FromEngine::kReady).wish == EngineWish::kHandOver);
    seen = rank.read(Tag::kOptimizer, kOptimizerBytes - 1);
    CHECK_FALSE(rank.release(Tag::kOptimizer));
    CHECK_FALSE(rank.release(Tag::kWeights));
    rank.over(7, true, false);
    CHECK(rank.hear(FromEngine::kReady).wish == EngineWish::kTakeBack);
    CHECK_FALSE(rank.map(Tag::kWeights));
    CHECK_FALSE(rank.map(Tag::kOptimizer));
    rank.over(7, false, true);
    rank.hear(FromEngine::kDetach);
  });
  AttachedEngine engine(job.path(), AWEX_TRAINER);
  CHECK(rank.hello.name == "test 1.0");
  CHECK(rank.hello.protocol == kProtocolVersion);

  awex_place_in_job place{};
  REQUIRE(awex_place(engine.get(), &place) == AWEX_OK);
  CHECK(place.rank == 3);
  CHECK(place.role_rank == 1);
  CHECK(std::string(place.model) == "tiny");
  CHECK(std::string(place.layout) == "hf");
  CHECK(std::string(place.backend) == "host");
  CHECK(place.reattached == 1);
  CHECK(place.version == 6);
  CHECK(awex_layout_size(engine.get()) == 2);
  awex_tensor listed{};
  REQUIRE(awex_layout_tensor(engine.get(), 1, &listed) == AWEX_OK);
  CHECK(std::string(listed.name) == "b");
  CHECK(std::string(listed.dtype) == "f8_e4m3");
  CHECK(listed.cols == 16);
  CHECK(listed.offset_bytes == 256);
  CHECK(awex_layout_tensor(engine.get(), 2, &listed) == AWEX_WRONG_REQUEST);
  const void* bytes = nullptr;
  size_t count = 0;
  REQUIRE(awex_kept(engine.get(), &bytes, &count) == AWEX_OK);
  CHECK(std::string(static_cast<const char*>(bytes), count) == "hello");

  const Told told(engine.get());
  const auto weights = engine.memory(AWEX_WEIGHTS);
  const auto optimizer = engine.memory(AWEX_OPTIMIZER);
  CHECK(weights.bytes == kWeightsBytes);
  CHECK(weights.is_mapped == 1);
  CHECK(optimizer.bytes == kOptimizerBytes);
  CHECK(optimizer.is_mapped == 1);
  CHECK(engine.memory(AWEX_KV_CACHE).address == nullptr);
  CHECK(engine.memory(AWEX_KV_CACHE).bytes == 0);
  std::memset(weights.address, 0x11, weights.bytes);
  std::memset(optimizer.address, 0x22, optimizer.bytes);

  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_WRONG_REQUEST);
  says("before awex_seal");
  auto first = tensor("wrong", AWEX_WEIGHTS);
  REQUIRE(awex_declare(engine.get(), &first) == AWEX_OK);
  CHECK(awex_seal(engine.get(), 30) == AWEX_WRONG_REQUEST);
  CHECK(std::string(awex_error()) == "rank 2 (inference): it went wrong\nmend it");
  const auto a = tensor("a", AWEX_WEIGHTS, 64);
  const auto m = tensor("m", AWEX_OPTIMIZER, 128);
  REQUIRE(awex_declare(engine.get(), &a) == AWEX_OK);
  CHECK(std::string(awex_error()).empty());
  REQUIRE(awex_declare(engine.get(), &m) == AWEX_OK);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  REQUIRE(rank.seal.declared[0].size() == 1);
  CHECK(rank.seal.declared[0][0].name == "a");
  CHECK(rank.seal.declared[0][0].dtype == DType::kBf16);
  CHECK(rank.seal.declared[0][0].offset_bytes == 64);
  CHECK(rank.seal.declared[1][0].name == "m");
  CHECK(awex_seal(engine.get(), 30) == AWEX_WRONG_REQUEST);
  CHECK(awex_declare(engine.get(), &a) == AWEX_WRONG_REQUEST);

  CHECK(awex_consistent(engine.get()) == AWEX_WRONG_REQUEST);
  REQUIRE(awex_writing(engine.get()) == AWEX_OK);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_WRONG_REQUEST);
  says("is writing");
  CHECK(awex_take_back(engine.get(), 30) ==
        AWEX_OK);  // all is here: there is nothing to consent to
  CHECK(awex_ready(engine.get(), 30) == AWEX_WRONG_REQUEST);
  CHECK(awex_check(engine.get()) == AWEX_OK);
  CHECK(rank.page->writing == 1);
  CHECK(rank.page->steps == 0);
  REQUIRE(awex_consistent(engine.get()) == AWEX_OK);
  CHECK(rank.page->writing == 0);
  CHECK(rank.page->steps == 1);
  REQUIRE(awex_keep(engine.get(), "abc", 3) == AWEX_OK);

  CHECK(awex_take_back(engine.get(), 0) == AWEX_OK);
  uint64_t version = 0;
  REQUIRE(awex_hand_over(engine.get(), 30, &version) == AWEX_OK);
  CHECK(version == 7);
  CHECK(seen == std::byte{0x22});
  CHECK_FALSE(engine.is_mapped(AWEX_WEIGHTS));
  CHECK_FALSE(engine.is_mapped(AWEX_OPTIMIZER));
  CHECK(engine.data(AWEX_WEIGHTS) == weights.address);
  REQUIRE(awex_take_back(engine.get(), 30) == AWEX_OK);
  CHECK(engine.memory(AWEX_WEIGHTS).address == weights.address);
  CHECK(engine.memory(AWEX_OPTIMIZER).address == optimizer.address);
  CHECK(holds_only(weights, 0x11));
  CHECK(holds_only(optimizer, 0x22));
  CHECK(told.lines ==
        std::vector<std::string>{"before 1 at 6", "before 0 at 6", "after 0 at 7", "after 1 at 7"});
  engine.detach();
  rank.join();
}

TEST_CASE("inference serves what is committed, through any number of commands") {
  const TemporaryDirectory job;
  InferenceRank rank(job);
  rank.begin([&] {
    rank.greet_and_seal();
    CHECK(rank.hear(FromEngine::kReady).newer_than == 0);
    rank.over(0, true, false);  // a take-back that has nothing to do here
    rank.hear(FromEngine::kReady);
    rank.over(0, false, true, a_failure());
    rank.hear(FromEngine::kReady);
    rank.take_and_map(Tag::kWeights);
    ToEngine changed;
    changed.kind = FromRank::kChanged;
    changed.version = 1;
    CHECK_FALSE(rank.ask(changed));
    rank.take_and_map(Tag::kKvCache);
    rank.over(1, false, true);
    rank.hear(FromEngine::kReady);
    rank.give(Tag::kKvCache);
    rank.give(Tag::kWeights);
    rank.over(1, true, false);
  });
  const AttachedEngine engine(job.path(), AWEX_INFERENCE);
  Told told(engine.get());
  CHECK(engine.memory(AWEX_WEIGHTS).bytes == kWeightsBytes);
  CHECK_FALSE(engine.is_mapped(AWEX_WEIGHTS));
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK(awex_release(engine.get(), 0) == AWEX_OK);
  uint64_t version = 0;
  REQUIRE(awex_wait(engine.get(), 0, 30, &version) == AWEX_OK);
  CHECK(version == 1);
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  CHECK(engine.is_mapped(AWEX_KV_CACHE));
  CHECK(told.lines == std::vector<std::string>{"after 0 at 0", "changed 0 at 1", "after 2 at 1"});
  REQUIRE(awex_wait(engine.get(), 0, 0, &version) == AWEX_OK);
  told.lines.clear();
  REQUIRE(awex_release(engine.get(), 30) == AWEX_OK);
  CHECK_FALSE(engine.is_mapped(AWEX_WEIGHTS));
  CHECK(told.lines == std::vector<std::string>{"before 2 at 1", "before 0 at 1"});
  CHECK(awex_hand_over(engine.get(), 1, nullptr) == AWEX_WRONG_REQUEST);
  CHECK(awex_take_back(engine.get(), 1) == AWEX_WRONG_REQUEST);
  CHECK(awex_writing(engine.get()) == AWEX_WRONG_REQUEST);
  CHECK(awex_keep(engine.get(), "x", 1) == AWEX_WRONG_REQUEST);
  rank.join();
}

TEST_CASE("a placeholder is one chunk's memory at the addresses of all, until the seal") {
  const TemporaryDirectory job;
  // Two whole chunks and a shorter one.
  constexpr uint64_t kKvBytes = 130ULL << 20;
  constexpr uint64_t kChunkBytes = 44ULL << 20;
  InferenceRank rank(job);
  rank.own(Tag::kKvCache, kKvBytes, false);
  REQUIRE(rank.owned(Tag::kKvCache).chunking().chunk_bytes == kChunkBytes);
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.take_and_map(Tag::kWeights);
    rank.take_and_map(Tag::kKvCache);
    rank.over(1, false, true);
  });
  const AttachedEngine engine(job.path(), AWEX_INFERENCE);
  CHECK(awex_map_placeholder(engine.get(), AWEX_OPTIMIZER) == AWEX_WRONG_REQUEST);
  CHECK(says("this engine has no optimizer"));
  CHECK_FALSE(engine.is_mapped(AWEX_KV_CACHE));
  REQUIRE(awex_map_placeholder(engine.get(), AWEX_KV_CACHE) == AWEX_OK);
  REQUIRE(engine.is_mapped(AWEX_KV_CACHE));
  auto* const bytes = static_cast<unsigned char*>(engine.memory(AWEX_KV_CACHE).address);
  for (uint64_t at = 0; at < kKvBytes; at += 1 << 20) bytes[at] = 1;  // all of it may be touched
  bytes[5] = 42;
  CHECK(bytes[kChunkBytes + 5] == 42);
  CHECK(bytes[2 * kChunkBytes + 5] != 42);
  REQUIRE(awex_use(engine.get(), AWEX_KV_CACHE) == AWEX_OK);
  void* const allocated = awex_alloc(kKvBytes, 0, nullptr);
  CHECK(allocated == bytes);
  CHECK(awex_map_placeholder(engine.get(), AWEX_KV_CACHE) == AWEX_OK);  // it is there
  CHECK(bytes[5] == 42);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK_FALSE(engine.is_mapped(AWEX_KV_CACHE));
  CHECK(awex_map_placeholder(engine.get(), AWEX_KV_CACHE) == AWEX_WRONG_REQUEST);
  REQUIRE(awex_wait(engine.get(), 0, 30, nullptr) == AWEX_OK);
  CHECK(engine.memory(AWEX_KV_CACHE).address == bytes);
  bytes[5] = 43;
  CHECK(bytes[kChunkBytes + 5] != 43);
  awex_free(allocated, kKvBytes, 0, nullptr);
  rank.join();
}

TEST_CASE("a seal that is refused takes the placeholder, and it may be mapped again") {
  const TemporaryDirectory job;
  InferenceRank rank(job);
  rank.begin([&] {
    rank.greet();
    for (const auto answer : {FromRank::kRefused, FromRank::kSealed}) {
      rank.hear(FromEngine::kSeal);
      ToEngine message;
      message.kind = answer;
      if (answer == FromRank::kRefused) message.error = a_failure(ExitCode::kRequest);
      rank.say(message);
    }
  });
  const AttachedEngine engine(job.path(), AWEX_INFERENCE);
  for (const auto status : {AWEX_WRONG_REQUEST, AWEX_OK}) {
    REQUIRE(awex_map_placeholder(engine.get(), AWEX_KV_CACHE) == AWEX_OK);
    CHECK(awex_seal(engine.get(), 30) == status);
    CHECK_FALSE(engine.is_mapped(AWEX_KV_CACHE));
  }
  rank.join();
}

TEST_CASE("memory that is there needs no placeholder, and a trainer has none") {
  const TemporaryDirectory job;
  InferenceRank rank(job);
  rank.own(Tag::kKvCache, kWeightsBytes, true);
  rank.begin([&] { rank.greet_and_seal(); });
  const AttachedEngine engine(job.path(), AWEX_INFERENCE);
  REQUIRE(awex_map_placeholder(engine.get(), AWEX_KV_CACHE) == AWEX_OK);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK(engine.is_mapped(AWEX_KV_CACHE));
  rank.join();

  const TemporaryDirectory other_job;
  TrainerRank trainer_rank(other_job);
  trainer_rank.begin([&] { trainer_rank.greet(); });
  const AttachedEngine trainer(other_job.path(), AWEX_TRAINER);
  CHECK(awex_map_placeholder(trainer.get(), AWEX_OPTIMIZER) == AWEX_WRONG_REQUEST);
  trainer_rank.join();
}

TEST_CASE("a command that fails ends the call that it was for, with its error") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.over(4, true, false, a_failure());
    rank.hear(FromEngine::kReady);
    rank.over(4, false, false, a_failure(ExitCode::kDeadline));
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  uint64_t version = 99;
  CHECK(awex_hand_over(engine.get(), 30, &version) == AWEX_MISMATCH);
  CHECK(version == 99);
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  CHECK(awex_ready(engine.get(), 30) == AWEX_DEADLINE);
  rank.join();
}

TEST_CASE("a callback that fails is told to the rank, and keeps the memory") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  std::optional<Error> before;
  std::optional<Error> after;
  std::optional<Error> changed_error;
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    before = rank.release(Tag::kWeights);
    ToEngine changed;
    changed.kind = FromRank::kChanged;
    changed_error = rank.ask(changed);
    rank.over(0, true, false, before);
    rank.hear(FromEngine::kReady);
    CHECK_FALSE(rank.release(Tag::kWeights));
    CHECK_FALSE(rank.release(Tag::kWeights));
    rank.over(0, true, false);
    rank.hear(FromEngine::kReady);
    after = rank.map(Tag::kWeights);
    rank.over(0, false, true, after);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  Told told(engine.get());
  told.answer = 7;
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_FAILED);
  says("the engine's callback before_release has failed for weights: it returned 7");
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  told.answer = 0;
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_OK);
  CHECK_FALSE(engine.is_mapped(AWEX_WEIGHTS));
  told.answer = 8;
  CHECK(awex_take_back(engine.get(), 30) == AWEX_FAILED);
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  rank.join();
  REQUIRE(after);
  REQUIRE(changed_error);
  CHECK(std::string(after->what()).find("after_resume") != std::string::npos);
  CHECK(std::string(changed_error->what()).find("weights_changed") != std::string::npos);
}

int calls_back(void* user, awex_tag, uint64_t) {
  auto* engine = static_cast<awex_engine*>(user);
  awex_memory_info info{};
  CHECK(awex_memory(engine, AWEX_WEIGHTS, &info) == AWEX_OK);
  CHECK(awex_ready(engine, 1) == AWEX_WRONG_REQUEST);
  return says("has not returned yet") ? 0 : 1;
}

int throws_back(void*, awex_tag, uint64_t) { throw 7; }

TEST_CASE("a callback may ask, but neither wait nor throw") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  std::optional<Error> thrown;
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    CHECK_FALSE(rank.release(Tag::kWeights));
    thrown = rank.release(Tag::kOptimizer);
    rank.over(1, true, false);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  awex_before_release(
      engine.get(),
      [](void* user, awex_tag tag, uint64_t version) {
        return tag == AWEX_WEIGHTS ? calls_back(user, tag, version)
                                   : throws_back(user, tag, version);
      },
      engine.get());
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_OK);
  CHECK(engine.is_mapped(AWEX_OPTIMIZER));
  rank.join();
  REQUIRE(thrown);
  CHECK(std::string(thrown->what()).find("it threw") != std::string::npos);
}

TEST_CASE("a call whose time is over takes its consent back") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  std::atomic<awex_engine*> shared{nullptr};
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.hear(FromEngine::kWithdraw);
    rank.say(FromRank::kWithdrawn);
    // Another thread is refused meanwhile, and changes nothing.
    rank.hear(FromEngine::kReady);
    std::thread([&] {
      CHECK(awex_ready(shared.load(), 30) == AWEX_WRONG_REQUEST);
      says("has not returned yet");
    }).join();
    rank.over(4, true, false);
    // The next call is in the midst of a command then, which goes on.
    rank.hear(FromEngine::kReady);
    rank.hear(FromEngine::kWithdraw);
    CHECK_FALSE(rank.release(Tag::kWeights));
    rank.over(5, true, false);
    // The last is met by another command, that failed.
    rank.hear(FromEngine::kReady);
    rank.hear(FromEngine::kWithdraw);
    rank.over(5, true, false, a_failure());
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK(awex_hand_over(engine.get(), 0.05, nullptr) == AWEX_DEADLINE);
  says("awex_hand_over: no command of the job has done it after 50.0 ms");
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  shared = engine.get();
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_OK);
  uint64_t version = 0;
  CHECK(awex_hand_over(engine.get(), 0.05, &version) == AWEX_OK);
  CHECK(version == 5);
  CHECK(awex_take_back(engine.get(), 0.05) == AWEX_DEADLINE);
  says("the last one failed: it went wrong");
  rank.join();
}

TEST_CASE("a release where no command takes memory returns at once") {
  const TemporaryDirectory job;
  InferenceRank rank(job);
  rank.welcome.takes_memory = false;
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.take_and_map(Tag::kWeights);
    rank.take_and_map(Tag::kKvCache);
    rank.over(1, false, true);
    rank.hear(FromEngine::kDetach);
  });
  {
    const AttachedEngine engine(job.path(), AWEX_INFERENCE);
    REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
    REQUIRE(awex_wait(engine.get(), 0, 30, nullptr) == AWEX_OK);
    CHECK(awex_release(engine.get(), 0) == AWEX_OK);
    CHECK(engine.is_mapped(AWEX_WEIGHTS));
  }
  rank.join();
}

TEST_CASE("a seal that is not answered in time is waited for again") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] {
    rank.greet();
    rank.hear(FromEngine::kSeal);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    rank.say(FromRank::kSealed);
    rank.hear(FromEngine::kDetach);
  });
  AttachedEngine engine(job.path(), AWEX_TRAINER);
  CHECK(awex_seal(engine.get(), 0.02) == AWEX_DEADLINE);
  says("it may wait for engines of other ranks to declare theirs");
  says("awex-colocate status --job " + job.path().string() + " tells which");
  const auto a = tensor("a", AWEX_WEIGHTS);
  CHECK(awex_declare(engine.get(), &a) == AWEX_WRONG_REQUEST);
  CHECK(awex_seal(engine.get(), 30) == AWEX_OK);
  engine.detach();
  rank.join();
}

TEST_CASE("what came while the engine was in no call does not end the next one") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  std::atomic<bool> told{false};
  rank.begin([&] {
    rank.greet_and_seal();
    rank.over(2, true, false, a_failure());
    rank.say(FromRank::kWithdrawn);
    told = true;
    rank.hear(FromEngine::kReady);
    CHECK_FALSE(rank.release(Tag::kWeights));
    rank.over(3, true, false);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  while (!told) std::this_thread::yield();
  uint64_t version = 0;
  CHECK(awex_hand_over(engine.get(), 30, &version) == AWEX_OK);
  CHECK(version == 3);
  rank.join();
}

void check_lost(const AttachedEngine& engine) {
  CHECK(awex_check(engine.get()) == AWEX_LOST);
  says("rank 3 of the job at ");
  CHECK(awex_ready(engine.get(), 30) == AWEX_LOST);
  says("rank 3 of the job at ");
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
  CHECK(awex_take_back(engine.get(), 30) == AWEX_LOST);
  CHECK(awex_writing(engine.get()) == AWEX_LOST);
  CHECK(awex_keep(engine.get(), "x", 1) == AWEX_LOST);
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
  CHECK(engine.data(AWEX_WEIGHTS)[kWeightsBytes - 1] == std::byte{0x33});
}

TEST_CASE("a rank that goes leaves the engine its memory, and every later call says so") {
  const TemporaryDirectory job;
  auto rank = std::make_unique<TrainerRank>(job);
  bool in_order = false;
  SUBCASE("in a call") {}
  SUBCASE("in order") { in_order = true; }
  rank->begin([&] {
    rank->greet_and_seal();
    rank->hear(FromEngine::kReady);
    if (in_order) rank->say(FromRank::kEnd);
    rank->channel.reset();
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::memset(engine.data(AWEX_WEIGHTS), 0x33, kWeightsBytes);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
  says(in_order ? "it was ended in order" : "the other end has gone");
  rank->join();
  rank.reset();  // its chunks, too
  check_lost(engine);
}

TEST_CASE("a look tells of a rank that has gone while the engine does something else") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] { rank.greet_and_seal(); });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  rank.join();
  CHECK(awex_check(engine.get()) == AWEX_OK);
  std::memset(engine.data(AWEX_WEIGHTS), 0x33, kWeightsBytes);
  rank.channel.reset();
  check_lost(engine);
}

TEST_CASE("a rank that is stopped does not keep a call whose time is over") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  const pid_t stopped = ::fork();
  if (stopped == 0) ::raise(SIGSTOP);
  rank.record.pid = stopped;
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.hear(FromEngine::kWithdraw);
    const auto gone = test::failure_of([&] { static_cast<void>(rank.frame()); });
    REQUIRE(gone);
    CHECK(gone->code() == ExitCode::kPeerLost);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::memset(engine.data(AWEX_WEIGHTS), 0x33, kWeightsBytes);
  CHECK(awex_hand_over(engine.get(), 0.05, nullptr) == AWEX_LOST);
  says(fmt::format("its process {} is stopped", stopped));
  rank.join();
  check_lost(engine);
  ::kill(stopped, SIGKILL);
  ::waitpid(stopped, nullptr, 0);
}

TEST_CASE("what is no message ends the conversation and keeps the memory") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  std::string text = "{}";
  SUBCASE("no message") {}
  SUBCASE("no JSON") { text = "GET / HTTP/1.1"; }
  SUBCASE("no text at all") { text = ""; }
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    rank.say_text(text);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::memset(engine.data(AWEX_WEIGHTS), 0x33, kWeightsBytes);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
  says("the rank's message");
  rank.join();
  check_lost(engine);
}

/// A trainer's rank whose optimizer state begins to leave: the host memory of its first chunk has
/// 0x66, so that it is known where that was read, while the engine has written 0x44.
struct LeavingRank : TrainerRank {
  explicit LeavingRank(const TemporaryDirectory& job)
      : TrainerRank(job, 0, kOptimizerBytes),
        copy(test::file_with(std::string(first_bytes(), '\x66'))) {
    record.pid = ::fork();
    if (record.pid == 0) {
      while (true) ::pause();
    }
  }
  LeavingRank(const LeavingRank&) = delete;
  LeavingRank& operator=(const LeavingRank&) = delete;
  LeavingRank(LeavingRank&&) = delete;
  LeavingRank& operator=(LeavingRank&&) = delete;
  ~LeavingRank() { end_process(); }
  void end_process() {
    if (record.pid == 0) return;
    ::kill(record.pid, SIGKILL);
    ::waitpid(std::exchange(record.pid, 0), nullptr, 0);
  }
  void die() {
    end_process();
    channel.reset();
  }
  [[nodiscard]] uint64_t first_bytes() const {
    return welcome.chunk_bytes[static_cast<size_t>(Tag::kOptimizer)];
  }
  /// Is asked to hand over, releases the optimizer state, and goes on with `rest`.
  void begin_to_release(const std::function<void()>& rest) {
    begin([this, rest] {
      greet_and_seal();
      hear(FromEngine::kReady);
      CHECK_FALSE(release(Tag::kOptimizer));
      rest();
    });
  }
  /// The first chunk, with what it holds; but for a digest that is wrong where it is `spoilt`.
  std::optional<Error> let_go_first(bool spoilt = false) {
    const std::string sixes(first_bytes() - 64, '\x66');
    const auto digest =
        digest_elements(tensor_key("m of a"), 4, 5, std::as_bytes(std::span(sixes)));
    return let_go(
        Tag::kOptimizer, 0, {copy.get()},
        {std::vector<DigestedRun>{{"m of a", 64, sixes.size(), 4, 5, digest + (spoilt ? 1 : 0)}}});
  }
  [[nodiscard]] bool is_half_back(const AttachedEngine& engine) const {
    const auto* data = engine.data(AWEX_OPTIMIZER);
    return engine.is_mapped(AWEX_OPTIMIZER) && data[0] == std::byte{0x66} &&
           data[first_bytes() - 1] == std::byte{0x66} && data[first_bytes()] == std::byte{0x44} &&
           data[kOptimizerBytes - 1] == std::byte{0x44};
  }

  UniqueFd copy;
};

TEST_CASE("a rank that is lost while a trainer's memory leaves takes nothing of it along") {
  const TemporaryDirectory job;
  LeavingRank rank(job);
  rank.begin_to_release([&] {
    CHECK_FALSE(rank.let_go_first());
    rank.die();
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::memset(engine.data(AWEX_OPTIMIZER), 0x44, kOptimizerBytes);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
  rank.join();
  CHECK_FALSE(engine.is_mapped(AWEX_OPTIMIZER));
  int32_t proven = 0;
  REQUIRE(awex_restore(engine.get(), &proven) == AWEX_OK);
  CHECK(rank.is_half_back(engine));
  CHECK(proven == 1);
  CHECK(engine.is_mapped(AWEX_WEIGHTS));
}

TEST_CASE("a part that has left is compared with what it was, and is not proven where none knows") {
  for (const bool spoilt : {true, false}) {
    const TemporaryDirectory job;
    LeavingRank rank(job);
    rank.begin_to_release([&] {
      if (spoilt) CHECK_FALSE(rank.let_go_first(spoilt));
      if (!spoilt) {
        CHECK_FALSE(rank.let_go(Tag::kOptimizer, 0, {rank.copy.get()}, {std::nullopt}));
      }
      rank.die();
    });
    const AttachedEngine engine(job.path(), AWEX_TRAINER);
    REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
    std::memset(engine.data(AWEX_OPTIMIZER), 0x44, kOptimizerBytes);
    CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
    rank.join();
    int32_t proven = 1;
    CHECK(awex_restore(engine.get(), &proven) == (spoilt ? AWEX_MISMATCH : AWEX_OK));
    if (spoilt) says("what of m of a lies in chunk 1 of 2");
    CHECK(rank.is_half_back(engine) == !spoilt);
    CHECK(proven == (spoilt ? 1 : 0));
  }
}

TEST_CASE(
    "a trainer that comes while a part of its memory is away has all of it without its rank") {
  const TemporaryDirectory job;
  LeavingRank rank(job);
  rank.welcome.mapped[static_cast<size_t>(Tag::kOptimizer)] = false;
  rank.welcome.away[static_cast<size_t>(Tag::kOptimizer)] = true;
  rank.begin([&] {
    rank.greet();
    ToEngine rest;
    rest.kind = FromRank::kMap;
    rest.tag = Tag::kOptimizer;
    rest.first = 1;
    rest.last = false;
    rank.fill(Tag::kOptimizer, 0x44);
    CHECK_FALSE(rank.ask(rest, {rank.owned(Tag::kOptimizer).export_fd(1)}));
    CHECK_FALSE(rank.let_go_first());
    rank.seal = rank.hear(FromEngine::kSeal);
    rank.say(FromRank::kSealed);
    rank.die();
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK_FALSE(engine.is_mapped(AWEX_OPTIMIZER));
  rank.join();
  REQUIRE(awex_restore(engine.get(), nullptr) == AWEX_OK);
  CHECK(rank.is_half_back(engine));
}

TEST_CASE("what another engine has had since is not restored") {
  const TemporaryDirectory job;
  LeavingRank rank(job);
  rank.page->engine = 1;
  rank.begin_to_release([&] {
    rank.page->engine = 2;
    rank.die();
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_LOST);
  rank.join();
  CHECK(awex_restore(engine.get(), nullptr) == AWEX_WRONG_REQUEST);
  says("another engine has attached to rank 3");
  CHECK_FALSE(engine.is_mapped(AWEX_OPTIMIZER));
}

TEST_CASE("memory that comes back before all of it has left is the rank's in every chunk") {
  const TemporaryDirectory job;
  LeavingRank rank(job);
  rank.begin_to_release([&] {
    CHECK_FALSE(rank.let_go_first());
    rank.owned(Tag::kOptimizer).release(0, 1);
    rank.owned(Tag::kOptimizer).take(0, 1);
    rank.over(0, true, false, a_failure());
    rank.hear(FromEngine::kReady);
    CHECK_FALSE(rank.map(Tag::kOptimizer));
    rank.over(0, false, true);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  auto* const data = engine.data(AWEX_OPTIMIZER);
  std::memset(data, 0x44, kOptimizerBytes);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_MISMATCH);
  CHECK_FALSE(engine.is_mapped(AWEX_OPTIMIZER));
  REQUIRE(awex_take_back(engine.get(), 30) == AWEX_OK);
  rank.join();
  for (const uint64_t at : {uint64_t{0}, rank.first_bytes(), kOptimizerBytes - 1}) {
    data[at] = std::byte{0x77};
    CHECK(rank.read(Tag::kOptimizer, at) == std::byte{0x77});
  }
  CHECK(data[kOptimizerBytes - 2] == std::byte{0x44});
}

TEST_CASE("a rank that asks for what cannot be is answered with an error, and no more happens") {
  const TemporaryDirectory job;
  TrainerRank rank(job, 0, kOptimizerBytes);
  std::vector<std::string> answers;
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    const auto ask = [&](Tag tag, uint64_t first, bool last, const std::vector<int>& fds) {
      ToEngine message;
      message.kind = FromRank::kMap;
      message.tag = tag;
      message.first = first;
      message.last = last;
      const auto error = rank.ask(message, fds);
      answers.emplace_back(error ? error->what() : "nothing");
    };
    const auto let_go = [&](uint64_t first, size_t count, const std::vector<int>& fds,
                            const ChunkDigests& holds = {}) {
      const auto error =
          rank.let_go(Tag::kOptimizer, first, fds, std::vector<ChunkDigests>(count, holds));
      answers.emplace_back(error ? error->what() : "nothing");
    };
    const auto fds = rank.owned(Tag::kOptimizer).export_fds();
    const auto other = test::file_with("short");
    const auto copy = test::file_with(std::string(kOptimizerBytes, 'c'));
    ask(Tag::kKvCache, 0, true, {fds[0]});  // no such memory
    ask(Tag::kOptimizer, 0, true, fds);     // mapped already
    let_go(0, 1, {copy.get()});             // not released
    CHECK_FALSE(rank.release(Tag::kOptimizer));
    let_go(0, 1, {});            // without a descriptor
    let_go(0, 2, {copy.get()});  // with one of two
    let_go(0, 2, {copy.get(), other.get()});
    let_go(1, 2, {copy.get(), copy.get()});
    let_go(UINT64_MAX, 2, {copy.get(), copy.get()});
    let_go(0, 1, {copy.get()}, std::vector<DigestedRun>{{"m", kOptimizerBytes - 4, 4, 4, 0, 0}});
    CHECK_FALSE(rank.let_go(Tag::kOptimizer, 0, {copy.get(), copy.get()}, {{}, {}}));
    ask(Tag::kOptimizer, 0, true, {});  // nothing
    ask(Tag::kOptimizer, 0, true, {fds[0], fds[1], fds[1]});
    ask(Tag::kOptimizer, UINT64_MAX, true, {fds[0]});
    ask(Tag::kOptimizer, 0, true, {other.get(), fds[1]});
    ask(Tag::kOptimizer, 0, true, {fds[0], other.get()});
    ask(Tag::kOptimizer, 0, true, {fds[0]});  // not the last
    CHECK_FALSE(rank.map(Tag::kOptimizer));
    rank.over(1, true, false);
  });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::memset(engine.data(AWEX_OPTIMIZER), 0x44, kOptimizerBytes);
  CHECK(awex_hand_over(engine.get(), 30, nullptr) == AWEX_OK);
  rank.join();
  CHECK(answers.size() == 15);
  for (const auto& answer : answers) CHECK(answer != "nothing");
  CHECK(answers[2] == "cannot let chunks of optimizer go: it is the engine's");
  CHECK(answers[12].find("the descriptor is of 5 bytes") != std::string::npos);
  CHECK(answers[14] == "all of optimizer is to be mapped, and chunk 2 of 2 has not come");
  CHECK(engine.is_mapped(AWEX_OPTIMIZER));
  CHECK(engine.data(AWEX_OPTIMIZER)[kOptimizerBytes - 1] == std::byte{0x44});
}

/// Attaches to a rank that does `work` once it has heard hello; returns the status.
awex_status attach_to(const std::function<void(TrainerRank&)>& work, double timeout_s = 30) {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] {
    rank.hello = rank.accept();
    work(rank);
  });
  const auto directory = job.path().string();
  auto options = test::attach_options(directory, AWEX_TRAINER);
  options.timeout_s = timeout_s;
  auto* engine = reinterpret_cast<awex_engine*>(1);
  const auto status = awex_attach(&options, &engine);
  CHECK(engine == nullptr);
  rank.join();
  return status;
}

TEST_CASE("a welcome that cannot be is no attachment") {
  const auto welcomed = [](const std::function<void(FakeRank&)>& spoil) {
    return attach_to([&](TrainerRank& rank) {
      spoil(rank);
      rank.say(rank.welcome, {rank.page_file.get()});
    });
  };
  CHECK(attach_to([](TrainerRank& rank) { rank.say(rank.welcome); }) == AWEX_FAILED);
  says("no welcome");
  CHECK(attach_to([](TrainerRank& rank) { rank.say(FromRank::kSealed); }) == AWEX_FAILED);
  CHECK(attach_to([](TrainerRank& rank) { rank.say_text("[]"); }) == AWEX_WRONG_REQUEST);
  CHECK(attach_to([](TrainerRank& rank) {
          rank.channel.reset();  // It was about to end; another listens in its place.
          rank.hello = rank.accept();
          ToEngine refusal;
          refusal.kind = FromRank::kRefused;
          refusal.error = a_failure(ExitCode::kMismatch);
          rank.say(refusal);
        }) == AWEX_MISMATCH);
  CHECK(attach_to([](TrainerRank& rank) {
          ToEngine refusal;
          refusal.kind = FromRank::kRefused;
          refusal.error = a_failure(ExitCode::kRequest);
          rank.say(refusal);
        }) == AWEX_WRONG_REQUEST);
  says("it went wrong");
  CHECK(attach_to([](TrainerRank& rank) {
          ToEngine end;
          end.kind = FromRank::kEnd;
          end.error = a_failure(ExitCode::kDeadline);
          rank.say(end);
        }) == AWEX_LOST);
  says("is lost: it went wrong");
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.kept_bytes = 1; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) { rank.page_file = test::file_with(""); }) == AWEX_FAILED);
  says("control page ends at byte 24, behind its file");
  CHECK(welcomed([](FakeRank& rank) { rank.page_file = test::file_with("page"); }) == AWEX_FAILED);
  says("is none");
  CHECK(welcomed([](FakeRank& rank) { rank.page->magic = 7; }) == AWEX_FAILED);
  says("is none");
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.mapped[2] = true; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.chunk_bytes[0] = 0; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.chunk_bytes[1] = 4096; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.chunk_bytes[0] = 3 << 19; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.bytes[0] = UINT64_MAX; }) == AWEX_FAILED);
  CHECK(welcomed([](FakeRank& rank) {
          rank.welcome.bytes[0] = 1ULL << 60;
          rank.welcome.chunk_bytes[0] = 1ULL << 58;
        }) == AWEX_FAILED);
  says("cannot reserve");
  CHECK(welcomed([](FakeRank& rank) { rank.welcome.backend = "cuda"; }) == AWEX_WRONG_REQUEST);
}

TEST_CASE("an engine that is not taken in does not wait for ever") {
  CHECK(attach_to(
            [](TrainerRank& rank) {
              try {
                static_cast<void>(rank.frame());
              } catch (const Error& error) {
                CHECK(error.code() == ExitCode::kPeerLost);
              }
            },
            0.1) == AWEX_DEADLINE);
  says("has not taken it in after");
  says("awex-colocate status --job ");
}

TEST_CASE("an engine that asks for more than the rank gives is not attached") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] { rank.greet(); });
  const auto directory = job.path().string();
  auto options = test::attach_options(directory, AWEX_TRAINER);
  options.bytes[AWEX_KV_CACHE] = 5;
  awex_engine* engine = nullptr;
  CHECK(awex_attach(&options, &engine) == AWEX_FAILED);
  says("rank 3 gives 0 B of kv_cache, and 5 B were asked for");
  rank.join();
  CHECK(rank.hello.bytes[2] == 5);
}

TEST_CASE("two engines in a process do not meet") {
  const TemporaryDirectory job;
  TrainerRank first(job, 0);
  TrainerRank second(job, 1);
  for (auto* rank : {&first, &second}) {
    rank->begin([rank] {
      rank->greet_and_seal();
      rank->hear(FromEngine::kReady);
      CHECK_FALSE(rank->release(Tag::kWeights));
      rank->over(rank->record.device + 1, true, false);
    });
  }
  const AttachedEngine two(job.path(), AWEX_TRAINER, 1);
  const AttachedEngine one(job.path(), AWEX_TRAINER, 0);
  REQUIRE(awex_seal(one.get(), 30) == AWEX_OK);
  REQUIRE(awex_seal(two.get(), 30) == AWEX_OK);
  CHECK(one.data(AWEX_WEIGHTS) != two.data(AWEX_WEIGHTS));
  std::memset(one.data(AWEX_WEIGHTS), 1, kWeightsBytes);
  std::memset(two.data(AWEX_WEIGHTS), 2, kWeightsBytes);
  uint64_t version = 0;
  REQUIRE(awex_hand_over(one.get(), 30, &version) == AWEX_OK);
  CHECK(version == 1);
  CHECK(two.data(AWEX_WEIGHTS)[5] == std::byte{2});
  std::thread other([&] {
    CHECK(awex_hand_over(two.get(), 30, &version) == AWEX_OK);
    CHECK(version == 2);
  });
  other.join();
  first.join();
  second.join();
}

TEST_CASE("what is declared must fit the memory") {
  const TemporaryDirectory job;
  TrainerRank rank(job);
  rank.begin([&] { rank.greet(); });
  const AttachedEngine engine(job.path(), AWEX_TRAINER);
  const auto refuse = [&](awex_tensor tensor, const char* why) {
    CHECK(awex_declare(engine.get(), &tensor) == AWEX_WRONG_REQUEST);
    says(why);
  };
  refuse({nullptr, "bf16", 1, 1, 0, AWEX_WEIGHTS}, "needs a name");
  refuse({"", "bf16", 1, 1, 0, AWEX_WEIGHTS}, "needs a name");
  refuse({"a", nullptr, 1, 1, 0, AWEX_WEIGHTS}, "needs a dtype");
  refuse({"a", "bf17", 1, 1, 0, AWEX_WEIGHTS}, "\"bf17\" is no dtype");
  refuse({"a", "bf16", 1, 1, 0, static_cast<awex_tag>(3)}, "no such tag");
  refuse({"a", "bf16", 1, 1, 0, AWEX_KV_CACHE}, "this engine has no kv_cache");
  refuse({"a", "f32", 1, 1, 2, AWEX_WEIGHTS}, "no multiple of its element's 4 bytes");
  refuse({"a", "bf16", 1, kWeightsBytes / 2, 2, AWEX_WEIGHTS}, "it ends at byte 3145730");
  refuse({"a", "bf16", 1ULL << 63, 2, 0, AWEX_WEIGHTS}, "does not fit 64 bits");
  refuse({"a", "f8_e5m2", 1, 1, UINT64_MAX, AWEX_WEIGHTS}, "does not fit 64 bits");
  const awex_tensor whole{"a", "BF16", 1, kWeightsBytes / 2, 0, AWEX_WEIGHTS};
  CHECK(awex_declare(engine.get(), &whole) == AWEX_OK);
  refuse({"a", "bf16", 1, 1, 0, AWEX_WEIGHTS}, "weights has it already");
  rank.join();
}

TEST_CASE("memory is allocated where the thread says, and freed wherever it lies") {
  const TemporaryDirectory job;
  TrainerRank rank(job, 0, kOptimizerBytes);
  rank.begin([&] {
    rank.greet_and_seal();
    rank.hear(FromEngine::kReady);
    CHECK_FALSE(rank.release(Tag::kWeights));
    rank.over(1, true, false);
  });
  AttachedEngine engine(job.path(), AWEX_TRAINER);
  REQUIRE(awex_seal(engine.get(), 30) == AWEX_OK);
  std::thread([&] {
    CHECK(awex_alloc(512, 0, nullptr) == nullptr);
    says("called no awex_use");
  }).join();
  CHECK(awex_use(engine.get(), AWEX_KV_CACHE) == AWEX_WRONG_REQUEST);
  REQUIRE(awex_use(engine.get(), AWEX_WEIGHTS) == AWEX_OK);
  CHECK(awex_alloc(-1, 0, nullptr) == nullptr);
  says("negative");
  CHECK(awex_alloc(0, 0, nullptr) == nullptr);
  CHECK(std::string(awex_error()).empty());
  auto* const a = static_cast<std::byte*>(awex_alloc(1000, 0, nullptr));
  auto* const b = static_cast<std::byte*>(awex_alloc(1, 0, nullptr));
  CHECK(a == engine.data(AWEX_WEIGHTS));
  CHECK(b == a + 1024);
  CHECK(awex_alloc(kWeightsBytes - 1024, 0, nullptr) == nullptr);
  CHECK(std::string(awex_error()) ==
        "cannot allocate 3.14 MB of weights: 1.54 kB of 3.15 MB are used, and the largest free "
        "place has 3.14 MB\nask for more when attaching, by tag: in Python optimizer_bytes and "
        "weights_bytes of awex_colocate.torch or .megatron tell how many bytes");
  REQUIRE(awex_use(engine.get(), AWEX_OPTIMIZER) == AWEX_OK);
  auto* const c = awex_alloc(kOptimizerBytes, 0, nullptr);
  CHECK(c == engine.data(AWEX_OPTIMIZER));
  std::thread([&] {
    awex_free(a, 1000, 0, nullptr);
    CHECK(std::string(awex_error()).empty());
    awex_free(a, 1000, 0, nullptr);
    says("was freed before");
    awex_free(b + 1, 1, 0, nullptr);
    says("was freed before");
    int other = 0;
    awex_free(&other, 1, 0, nullptr);
    says("not of awex_alloc");
    awex_free(nullptr, 0, 0, nullptr);
    CHECK(std::string(awex_error()).empty());
  }).join();
  REQUIRE(awex_use(engine.get(), AWEX_WEIGHTS) == AWEX_OK);
  CHECK(awex_alloc(1024, 0, nullptr) == a);
  REQUIRE(awex_hand_over(engine.get(), 30, nullptr) == AWEX_OK);
  CHECK(awex_alloc(1, 0, nullptr) == nullptr);
  says("not mapped now");
  awex_free(a, 1024, 0, nullptr);
  CHECK(std::string(awex_error()).empty());
  engine.detach();
  CHECK(awex_alloc(1, 0, nullptr) == nullptr);
  awex_free(c, 1, 0, nullptr);
  says("its engine left");
  rank.join();
}

TEST_CASE("wrong arguments are errors, whatever they are") {
  awex_engine* engine = nullptr;
  uint64_t version = 0;
  awex_place_in_job place{};
  awex_memory_info info{};
  awex_tensor a{};
  const void* bytes = nullptr;
  size_t count = 0;
  for (const auto status : {awex_attach(nullptr, &engine),
                            awex_attach(nullptr, nullptr),
                            awex_place(nullptr, &place),
                            awex_memory(nullptr, AWEX_WEIGHTS, &info),
                            awex_layout_tensor(nullptr, 0, &a),
                            awex_declare(nullptr, &a),
                            awex_seal(nullptr, 1),
                            awex_hand_over(nullptr, 1, &version),
                            awex_take_back(nullptr, 1),
                            awex_wait(nullptr, 0, 1, &version),
                            awex_release(nullptr, 1),
                            awex_ready(nullptr, 1),
                            awex_check(nullptr),
                            awex_writing(nullptr),
                            awex_consistent(nullptr),
                            awex_before_release(nullptr, nullptr, nullptr),
                            awex_after_resume(nullptr, nullptr, nullptr),
                            awex_weights_changed(nullptr, nullptr, nullptr),
                            awex_use(nullptr, AWEX_WEIGHTS),
                            awex_keep(nullptr, "x", 1),
                            awex_kept(nullptr, &bytes, &count)}) {
    CHECK(status == AWEX_WRONG_REQUEST);
  }
  CHECK(awex_layout_size(nullptr) == 0);
  says("NULL");
  awex_detach(nullptr);
  CHECK(std::string(awex_error()).empty());
  CHECK(awex_abi_version() == AWEX_ABI_VERSION);
  CHECK(std::string(awex_build()).rfind("0.1.0+", 0) == 0);

  const std::string nowhere = "/nowhere";
  const auto refuse = [&](const std::function<void(awex_attach_options&)>& spoil, const char* why) {
    auto options = test::attach_options(nowhere, AWEX_TRAINER);
    spoil(options);
    CHECK(awex_attach(&options, &engine) == AWEX_WRONG_REQUEST);
    says(why);
  };
  refuse([](auto& options) { options.struct_size = 8; }, "struct_size");
  const TemporaryDirectory nobody;  // No job is here.
  const char* usual = std::getenv("XDG_RUNTIME_DIR");
  const std::string before = usual == nullptr ? "" : usual;
  ::setenv("XDG_RUNTIME_DIR", nobody.path().c_str(), 1);
  refuse([](auto& options) { options.job = nullptr; }, "no job was named");
  refuse([](auto& options) { options.job = ""; }, "no job was named");
  ::setenv("XDG_RUNTIME_DIR", before.c_str(), 1);
  refuse(
      [](auto& options) {
        const int none = 2;  // C lets an enum have it, C++ does not
        std::memcpy(&options.role, &none, sizeof(none));
      },
      "no such role");
  refuse([](auto& options) { options.name = nullptr; }, "a name needs 1 to 31 bytes");
  refuse([](auto& options) { options.name = "12345678901234567890123456789012"; }, "31 bytes");
  refuse([](auto& options) { options.name = "a\nb"; }, "31 bytes");
  refuse([](auto& options) { options.device = -1; }, "counted from 0");
  refuse([](auto& options) { options.timeout_s = -1; }, "timeout");
  refuse([](auto& options) { options.timeout_s = std::nan(""); }, "timeout");
  refuse([](auto& options) { options.gpu_uuid = "0"; }, "\"0\" is no GPU's UUID");
}

}  // namespace
