#include "memory/region.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "support/offloaded_bytes.hpp"
#include "support/renewing_monitor.hpp"

using namespace awex;

namespace {

constexpr uint64_t kFakeChunk = 16;

/// The calls that a region makes, in order, and which of them shall fail. Host memory is made on
/// other threads, ahead of when it is needed, and is only counted.
struct Script {
  std::vector<std::string> calls;
  int host_calls = 0;
  std::map<std::string, int> fail_after;  ///< Kind of call: how many may still succeed.
  std::mutex mutex;

  void call(const std::string& kind, uint64_t number) { call(kind, fmt::format("{}", number)); }
  void call(const std::string& kind, const std::string& what) {
    {
      const std::lock_guard lock(mutex);
      if (kind == "host") {
        ++host_calls;
      } else {
        calls.push_back(fmt::format("{} {}", kind, what));
      }
    }
    fail_if_due(kind);
  }
  void fail_if_due(const std::string& kind) {
    const std::lock_guard lock(mutex);
    const auto limit = fail_after.find(kind);
    if (limit != fail_after.end() && limit->second-- == 0) {
      fail_after.erase(limit);
      throw runtime_error("scripted failure of " + kind);
    }
  }
};

/// "0" for one chunk, "0-3" for several.
std::string numbers(uint64_t first, uint64_t count) {
  return count == 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, first + count - 1);
}

class FakeChunks final : public OwnedChunks {
 public:
  FakeChunks(uint64_t bytes, Script& script)
      : OwnedChunks({"fake", bytes, kFakeChunk}), script_(script) {}

 protected:
  void do_take(uint64_t first, uint64_t count) override {
    script_.call("take", numbers(first, count));
  }
  void do_release(uint64_t /*first*/, uint64_t /*count*/) override { script_.fail_if_due("free"); }
  [[nodiscard]] int do_export(uint64_t /*chunk*/) override { return -1; }

 private:
  Script& script_;
};

/// A range of a few bytes. What is not mapped is poison, and so is what has just been mapped.
class FakeMapping final : public MappedChunks {
 public:
  FakeMapping(uint64_t bytes, Script& script)
      : MappedChunks({"fake", bytes, kFakeChunk}),
        script_(script),
        memory_(chunking().count() * kFakeChunk, std::byte{0xdd}) {}

  [[nodiscard]] std::byte* data() const override { return memory_.data(); }

 protected:
  void do_map(OwnedChunks& /*owner*/, uint64_t first, uint64_t count) override {
    script_.fail_if_due("map");
    poison(first, count, std::byte{0xcd});
  }
  void do_map(uint64_t /*first*/, std::vector<UniqueFd> /*fds*/) override {}
  void do_unmap(uint64_t first, uint64_t count, const std::string& /*what*/) override {
    script_.call("release", numbers(first, count));
    poison(first, count, std::byte{0xdd});
  }

 private:
  void poison(uint64_t first, uint64_t count, std::byte value) {
    std::fill_n(memory_.begin() + static_cast<std::ptrdiff_t>(first * kFakeChunk),
                count * kFakeChunk, value);
  }

  Script& script_;
  mutable std::vector<std::byte> memory_;
};

class FakeBlock final : public HostBlock {
 public:
  explicit FakeBlock(uint64_t bytes) : memory_(bytes, std::byte{0xbb}) {}
  [[nodiscard]] std::span<std::byte> bytes() const override { return memory_; }
  [[nodiscard]] int fd() const override { return -1; }

 private:
  mutable std::vector<std::byte> memory_;
};

/// Copies as late as it may: when it is waited for. A chunk released too early is copied as poison.
class FakeQueue final : public CopyQueue {
 public:
  explicit FakeQueue(Script& script) : script_(script) {}

  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    script_.call("copy", bytes);
    pending_.push_back({to, from, bytes, 0});
  }
  void fill_zero(std::byte* /*device*/, uint64_t /*bytes*/) override { FAIL("not asked for"); }
  QueueEvent record() override {
    ++events_;
    for (auto& copy : pending_) {
      if (copy.event == 0) copy.event = events_;
    }
    return events_;
  }
  void wait(QueueEvent event, const std::string& /*what*/, const Deadline& /*deadline*/,
            WaitMonitor& monitor) override {
    script_.call("wait", event);
    monitor.poll();
    while (!pending_.empty() && pending_.front().event <= event) {
      const auto& copy = pending_.front();
      std::copy_n(copy.from, copy.bytes, copy.to);
      pending_.pop_front();
    }
  }

 private:
  struct Copy {
    std::byte* to;
    const std::byte* from;
    uint64_t bytes;
    QueueEvent event;
  };

  Script& script_;
  std::deque<Copy> pending_;
  QueueEvent events_ = 0;
};

class FakeDevice final : public Device {
 public:
  explicit FakeDevice(Script& script) : script_(script) {}

  [[nodiscard]] BackendKind kind() const override { return BackendKind::kHost; }
  [[nodiscard]] const DeviceIdentity& identity() const override { return identity_; }
  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& /*name*/,
                                                         uint64_t bytes) override {
    return std::make_unique<FakeChunks>(bytes, script_);
  }
  [[nodiscard]] std::unique_ptr<MappedChunks> reserve_mapping(const std::string& /*name*/,
                                                              uint64_t bytes,
                                                              uint64_t /*chunk_bytes*/,
                                                              MappedAccess /*access*/) override {
    return std::make_unique<FakeMapping>(bytes, script_);
  }
  [[nodiscard]] std::unique_ptr<OpenedBlock> open_lent(const std::string& /*name*/,
                                                       const LentBlock& /*block*/,
                                                       const UniqueFd& /*fd*/) override {
    throw runtime_error("nobody lends to a fake device");
  }
  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes,
                                                         HostSharing /*sharing*/) override {
    script_.call("host", bytes);
    std::this_thread::sleep_for(host_delay);
    return std::make_unique<FakeBlock>(bytes);
  }
  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override {
    return std::make_unique<FakeQueue>(script_);
  }
  [[nodiscard]] DeviceMemory memory() const override { return {}; }

  std::chrono::milliseconds host_delay{0};

 private:
  Script& script_;
  DeviceIdentity identity_;
};

std::byte named(uint64_t index) { return static_cast<std::byte>(index * 7 + 1); }

/// A region of three and a half chunks on a fake device.
struct Fixture {
  static constexpr uint64_t kBytes = 3 * kFakeChunk + 7;

  Script script;
  FakeDevice device{script};
  Region region{device, "trainer optimizer", Tag::kOptimizer, kBytes};
  std::unique_ptr<CopyQueue> queue = device.make_queue();
  NoMonitor monitor;
  Deadline deadline{Seconds(60)};

  RegionChange take() { return region.take(deadline, monitor); }
  RegionChange offload() { return region.offload(*queue, deadline, monitor); }
  RegionChange resume() { return region.resume(*queue, deadline, monitor); }

  void take_and_fill() {
    take();
    for (uint64_t i = 0; i < kBytes; ++i) region.data()[i] = named(i);
    script.calls.clear();
  }
  [[nodiscard]] bool is_whole() const {
    for (uint64_t i = 0; i < kBytes; ++i) {
      if (region.data()[i] != named(i)) return false;
    }
    return true;
  }
  void fail(const std::string& kind, int after) { script.fail_after = {{kind, after}}; }

  /// Brings the region into any of its states, by failures where it takes one.
  void bring_to(RegionState state) {
    if (state == RegionState::kDiscarded) return;
    take_and_fill();
    if (state == RegionState::kResident) return;
    if (state == RegionState::kOffloading) {
      fail("release", 1);
      CHECK_THROWS_AS(offload(), Error);
      return;
    }
    offload();
    if (state == RegionState::kOffloaded) return;
    fail("take", 1);
    CHECK_THROWS_AS(resume(), Error);
  }
};

constexpr RegionState kStates[] = {RegionState::kDiscarded, RegionState::kResident,
                                   RegionState::kOffloading, RegionState::kOffloaded,
                                   RegionState::kResuming};

/// What a call does in a state: the state after it, or nothing where it is refused.
using Outcome = std::optional<RegionState>;

}  // namespace

TEST_CASE("names of tags and states") {
  CHECK(std::string(tag_name(Tag::kWeights)) == "weights");
  CHECK(std::string(tag_name(Tag::kOptimizer)) == "optimizer");
  CHECK(std::string(tag_name(Tag::kKvCache)) == "kv_cache");
  CHECK(std::string(state_name(RegionState::kDiscarded)) == "discarded");
  CHECK(std::string(state_name(RegionState::kResident)) == "resident");
  CHECK(std::string(state_name(RegionState::kOffloading)) == "offloading");
  CHECK(std::string(state_name(RegionState::kOffloaded)) == "offloaded");
  CHECK(std::string(state_name(RegionState::kResuming)) == "resuming");
}

TEST_CASE("every call in every state does what the table says") {
  constexpr auto kD = RegionState::kDiscarded;
  constexpr auto kR = RegionState::kResident;
  constexpr auto kO = RegionState::kOffloaded;
  struct Row {
    const char* call;
    Outcome outcome[5];  ///< From discarded, resident, offloading, offloaded, resuming.
  };
  const Row rows[] = {{"take", {kR, kR, {}, {}, {}}},
                      {"discard", {kD, kD, {}, {}, {}}},
                      {"offload", {{}, kO, kO, kO, {}}},
                      {"resume", {kR, kR, kR, kR, kR}}};
  for (const auto& row : rows) {
    for (size_t i = 0; i < 5; ++i) {
      Fixture f;
      f.bring_to(kStates[i]);
      REQUIRE(f.region.state() == kStates[i]);
      CAPTURE(row.call);
      CAPTURE(state_name(kStates[i]));
      const std::string call = row.call;
      const auto act = [&] {
        if (call == "take") return f.take();
        if (call == "discard") return f.region.discard();
        return call == "offload" ? f.offload() : f.resume();
      };
      if (!row.outcome[i]) {
        CHECK_THROWS_AS(act(), Error);
        CHECK(f.region.state() == kStates[i]);
        continue;
      }
      CHECK(act().changed == (row.outcome[i] != kStates[i]));
      CHECK(f.region.state() == *row.outcome[i]);
      if (kStates[i] != kD && f.region.state() == kR) CHECK(f.is_whole());
      CHECK(f.region.held_bytes() == (f.region.state() == kR ? 4 * kFakeChunk : 0));
    }
  }
}

TEST_CASE("a refused move names the region, its tag and both states, and touches nothing") {
  Fixture f;
  f.bring_to(RegionState::kOffloaded);
  f.script.calls.clear();
  try {
    f.region.discard();
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message ==
          "cannot move \"trainer optimizer\" (optimizer, 55 B) from offloaded to discarded");
    CHECK(error.code() == ExitCode::kRuntime);
    CHECK(error.context().tag == "optimizer");
    CHECK_FALSE(error.hint().empty());
  }
  CHECK(f.script.calls.empty());
}

TEST_CASE("asking for what is so already does nothing and says so") {
  Fixture f;
  CHECK_FALSE(f.region.discard().changed);
  f.take_and_fill();
  CHECK_FALSE(f.take().changed);
  CHECK_FALSE(f.resume().changed);
  CHECK(f.script.calls.empty());
  f.offload();
  f.script.calls.clear();
  const auto again = f.offload();
  CHECK_FALSE(again.changed);
  CHECK(again.moved_bytes == 0);
  CHECK(f.script.calls.empty());
}

TEST_CASE("an offload and a resume keep all bytes, count them, and keep the host memory") {
  Fixture f;
  f.take_and_fill();
  CHECK(f.region.held_bytes() == 4 * kFakeChunk);
  CHECK(f.region.host_bytes() == 0);
  CHECK(f.region.backup(0).empty());
  for (int cycle = 0; cycle < 2; ++cycle) {
    CHECK(f.offload().moved_bytes == Fixture::kBytes);
    CHECK(f.region.held_bytes() == 0);
    CHECK(f.region.host_bytes() == Fixture::kBytes);
    CHECK(f.region.backup(3).size() == 7);
    CHECK(f.region.backup(3)[6] == named(Fixture::kBytes - 1));
    CHECK(f.resume().moved_bytes == Fixture::kBytes);
    CHECK(f.is_whole());
    CHECK(f.region.host_bytes() == Fixture::kBytes);
  }
}

TEST_CASE("a chunk is released behind its own copy, while the next one runs") {
  Fixture f;
  f.take_and_fill();
  f.offload();
  CHECK(f.script.calls == std::vector<std::string>{"copy 16", "copy 16", "wait 1", "release 0",
                                                   "copy 16", "wait 2", "release 1", "copy 7",
                                                   "wait 3", "release 2", "wait 4", "release 3"});
  CHECK(f.script.host_calls == 4);
  f.script.calls.clear();
  f.resume();
  CHECK(f.script.calls == std::vector<std::string>{"take 0", "copy 16", "take 1", "copy 16",
                                                   "take 2", "copy 16", "take 3", "copy 7",
                                                   "wait 5", "wait 6", "wait 7", "wait 8"});
}

TEST_CASE("an offload of a part gives enough back, and makes host memory for no more") {
  Fixture f;
  f.take_and_fill();
  const auto offload = [&f](uint64_t enough) {
    return f.region.offload(*f.queue, f.deadline, f.monitor, {}, enough).moved_bytes;
  };
  CHECK(offload(1) == kFakeChunk);
  CHECK(f.region.state() == RegionState::kOffloading);
  CHECK(f.script.host_calls == 1);
  CHECK(offload(kFakeChunk + 1) == 2 * kFakeChunk);
  CHECK(f.region.held_bytes() == kFakeChunk);
  CHECK_FALSE(f.region.has_copy());
  CHECK(f.script.calls == std::vector<std::string>{"copy 16", "wait 1", "release 0", "copy 16",
                                                   "copy 16", "wait 2", "release 1", "wait 3",
                                                   "release 2"});
  SUBCASE("the rest follows") {
    CHECK(offload(kEverything) == 7);
    CHECK(f.region.state() == RegionState::kOffloaded);
    CHECK(f.region.has_copy());
    CHECK(f.script.host_calls == 4);
    CHECK(f.resume().moved_bytes == Fixture::kBytes);
  }
  SUBCASE("the part comes back") { CHECK(f.resume().moved_bytes == 3 * kFakeChunk); }
  CHECK(f.is_whole());
}

TEST_CASE("a chunk is shown when it is copied, beside the next copy, the last beside its own") {
  Fixture f;
  f.take_and_fill();
  const auto leaving = [&](uint64_t chunk) {
    f.script.call("leaving", chunk);
    const auto first = named(chunk * kFakeChunk);
    CHECK(f.region.data()[chunk * kFakeChunk] == first);
    const bool is_last = chunk == 3;
    CHECK((f.region.backup(chunk)[0] == first) == !is_last);
  };
  f.region.offload(*f.queue, f.deadline, f.monitor, leaving);
  CHECK(f.script.calls ==
        std::vector<std::string>{"copy 16", "copy 16", "wait 1", "leaving 0", "release 0",
                                 "copy 16", "wait 2", "leaving 1", "release 1", "copy 7", "wait 3",
                                 "leaving 2", "release 2", "leaving 3", "wait 4", "release 3"});
}

TEST_CASE("a chunk whose leaving fails is not given back, however often") {
  Fixture f;
  f.take_and_fill();
  const auto leaving = [](uint64_t chunk) {
    if (chunk == 1) throw runtime_error("not readable");
  };
  for (int attempt = 0; attempt < 2; ++attempt) {
    CHECK_THROWS_WITH_AS(f.region.offload(*f.queue, f.deadline, f.monitor, leaving), "not readable",
                         Error);
    CHECK(f.region.held_bytes() == 3 * kFakeChunk);
  }
  f.resume();
  CHECK(f.is_whole());
}

TEST_CASE("chunks arrive one by one, each whole, before those behind are waited for") {
  Fixture f;
  f.take_and_fill();
  f.offload();
  f.script.calls.clear();
  const auto arrived = [&](uint64_t chunk) {
    f.script.call("arrived", chunk);
    CHECK(f.region.data()[chunk * kFakeChunk] == named(chunk * kFakeChunk));
  };
  f.region.resume(*f.queue, f.deadline, f.monitor, arrived);
  CHECK(std::vector<std::string>(f.script.calls.end() - 8, f.script.calls.end()) ==
        std::vector<std::string>{"wait 5", "arrived 0", "wait 6", "arrived 1", "wait 7",
                                 "arrived 2", "wait 8", "arrived 3"});
}

TEST_CASE("host memory that was prepared is not made again") {
  Fixture f;
  f.region.prepare_backup();
  CHECK(f.region.host_bytes() == Fixture::kBytes);
  CHECK(f.script.host_calls == 4);
  f.take_and_fill();
  f.offload();
  CHECK(f.script.host_calls == 4);
  f.resume();
  CHECK(f.is_whole());
}

TEST_CASE("all memory is taken by one call, and given back by one") {
  Fixture f;
  f.take();
  f.region.discard();
  CHECK(f.script.calls == std::vector<std::string>{"take 0-3", "release 0-3"});
}

namespace {

/// A region on a ledger on which another process holds all but two chunks' bytes, and gives two
/// more back when it is waited for.
struct TightFixture final : WaitMonitor {
  Script script;
  FakeDevice device{script};
  LedgerWords words;
  MemoryLedger ledger{words, 6 * kFakeChunk};
  Region region{device, "kv_cache", Tag::kKvCache, Fixture::kBytes, &ledger};
  Deadline deadline{Seconds(60)};
  uint64_t others = 4 * kFakeChunk;

  TightFixture() { REQUIRE(ledger.try_reserve(others)); }
  void poll() override {
    script.call("poll", 0);
    if (others < 4 * kFakeChunk) return;
    ledger.release(2 * kFakeChunk);
    others -= 2 * kFakeChunk;
  }
  [[nodiscard]] uint64_t booked() const { return words.held - others; }
};

}  // namespace

TEST_CASE("host memory that comes slowly is waited for as long as it comes") {
  Script script;
  FakeDevice device(script);
  device.host_delay = std::chrono::milliseconds(400);  // two at a time
  Region region(device, "trainer optimizer", Tag::kOptimizer, 8 * kFakeChunk);
  const auto queue = device.make_queue();
  test::RenewingMonitor monitor;
  region.take(Deadline(Seconds(60)), monitor);
  CHECK(region.offload(*queue, Deadline(Seconds(1.2)), monitor).moved_bytes == 8 * kFakeChunk);
  REQUIRE(monitor.told.size() == 8);
  CHECK(monitor.told[1].done_bytes == 2 * kFakeChunk);
  CHECK(monitor.told[1].all_bytes == 8 * kFakeChunk);
  for (size_t i = 0; i < 8; ++i) CHECK(monitor.told[i].ended == (i == 7));
  // Then it is there, and there is nothing to tell.
  region.resume(*queue, Deadline(Seconds(60)), monitor);
  region.offload(*queue, Deadline(Seconds(60)), monitor);
  CHECK(monitor.told.size() == 8);
}

TEST_CASE("as much is taken at once as there is room for") {
  TightFixture f;
  CHECK(f.region.take(f.deadline, f).changed);
  CHECK(f.script.calls == std::vector<std::string>{"take 0-1", "poll 0", "take 2-3"});
  CHECK(f.booked() == 4 * kFakeChunk);
  CHECK(f.ledger.peak_bytes() == 6 * kFakeChunk);
  f.region.discard();
  CHECK(f.booked() == 0);
}

TEST_CASE("taking is all or nothing, in the books as well, whether it is memory or its mapping") {
  for (const std::string kind : {"take", "map"}) {
    for (int after = 0; after < 2; ++after) {
      CAPTURE(kind);
      CAPTURE(after);
      TightFixture f;
      f.script.fail_after = {{kind, after}};
      CHECK_THROWS_WITH_AS(f.region.take(f.deadline, f), ("scripted failure of " + kind).c_str(),
                           Error);
      CHECK(f.region.state() == RegionState::kDiscarded);
      CHECK(f.region.held_bytes() == 0);
      CHECK(f.booked() == 0);
      CHECK(f.region.take(f.deadline, f).changed);
      CHECK(f.region.held_bytes() == 4 * kFakeChunk);
    }
  }
}

TEST_CASE("memory that cannot be mapped is given up, and why it could not be is what is told") {
  TightFixture f;
  f.script.fail_after = {{"map", 1}, {"free", 0}};
  CHECK_THROWS_WITH_AS(f.region.take(f.deadline, f), "scripted failure of map", Error);
  CHECK(f.script.fail_after.empty());
  CHECK(f.region.held_bytes() == 0);
  CHECK(f.booked() == 0);
  CHECK(f.region.take(f.deadline, f).changed);
}

TEST_CASE(
    "a take that cannot give back tells why it failed, and the next call goes on from there") {
  for (const std::string kind : {"release", "free"}) {
    for (const bool discards : {false, true}) {
      CAPTURE(kind);
      CAPTURE(discards);
      TightFixture f;
      f.script.fail_after = {{"take", 1}, {kind, 0}};
      CHECK_THROWS_WITH_AS(f.region.take(f.deadline, f), "scripted failure of take", Error);
      const uint64_t kept = kind == "release" ? 2 : 0;
      CHECK(f.region.state() == RegionState::kDiscarded);
      CHECK(f.region.held_bytes() == kept * kFakeChunk);
      CHECK(f.booked() == f.region.held_bytes());
      if (discards) {
        CHECK(f.region.discard().changed == (kept > 0));
        CHECK(f.region.held_bytes() == 0);
        CHECK(f.booked() == 0);
      }
      f.script.calls.clear();
      CHECK(f.region.take(f.deadline, f).changed);
      CHECK(f.script.calls ==
            std::vector<std::string>{kept > 0 && !discards ? "take 2-3" : "take 0-3"});
      CHECK(f.booked() == 4 * kFakeChunk);
    }
  }
}

TEST_CASE("a discard that fails ends in the state that the range is in, and can be repeated") {
  for (const std::string kind : {"release", "free"}) {
    CAPTURE(kind);
    TightFixture f;
    f.region.take(f.deadline, f);
    f.script.fail_after = {{kind, 0}};
    CHECK_THROWS_AS(f.region.discard(), Error);
    CHECK(f.region.state() == RegionState::kDiscarded);
    CHECK(f.booked() == f.region.held_bytes());
    CHECK(f.region.discard().changed == (kind == "release"));
    CHECK(f.region.held_bytes() == 0);
    CHECK(f.booked() == 0);
    CHECK(f.region.take(f.deadline, f).changed);
    CHECK(f.booked() == 4 * kFakeChunk);
  }
}

TEST_CASE("the books hold what the range does, whatever fails in giving it back") {
  for (const std::string kind : {"release", "free"}) {
    for (int after = 0; after < 4; ++after) {
      CAPTURE(kind);
      CAPTURE(after);
      TightFixture f;
      const auto queue = f.device.make_queue();
      f.region.take(f.deadline, f);
      f.script.fail_after = {{kind, after}};
      CHECK_THROWS_WITH_AS(f.region.offload(*queue, f.deadline, f),
                           ("scripted failure of " + kind).c_str(), Error);
      const auto gone = static_cast<uint64_t>(kind == "free" ? after + 1 : after);
      CHECK(f.region.held_bytes() == (4 - gone) * kFakeChunk);
      CHECK(f.booked() == f.region.held_bytes());
      f.region.offload(*queue, f.deadline, f);
      CHECK(f.booked() == 0);
      f.region.resume(*queue, f.deadline, f);
      CHECK(f.booked() == 4 * kFakeChunk);
    }
  }
}

TEST_CASE("whatever fails in an offload, a resume brings every byte back") {
  for (const auto* kind : {"host", "copy", "wait", "release", "free"}) {
    for (int after = 0; after < 4; ++after) {
      CAPTURE(kind);
      CAPTURE(after);
      Fixture f;
      f.take_and_fill();
      f.fail(kind, after);
      CHECK_THROWS_AS(f.offload(), Error);
      CHECK(f.region.state() == RegionState::kOffloading);
      const uint64_t released = 4 - f.region.held_bytes() / kFakeChunk;
      f.script.calls.clear();
      f.resume();
      CHECK(f.region.state() == RegionState::kResident);
      CHECK(f.is_whole());
      CHECK(f.region.held_bytes() == 4 * kFakeChunk);
      const auto taken = std::count_if(f.script.calls.begin(), f.script.calls.end(),
                                       [](const auto& call) { return call.starts_with("take"); });
      CHECK(static_cast<uint64_t>(taken) == released);
    }
  }
}

TEST_CASE("a failed offload can be repeated to its end") {
  for (const auto* kind : {"host", "copy", "wait", "release", "free"}) {
    for (int after = 0; after < 4; ++after) {
      CAPTURE(kind);
      CAPTURE(after);
      Fixture f;
      f.take_and_fill();
      f.fail(kind, after);
      CHECK_THROWS_AS(f.offload(), Error);
      f.offload();
      CHECK(f.region.state() == RegionState::kOffloaded);
      CHECK(f.region.held_bytes() == 0);
      f.resume();
      CHECK(f.is_whole());
    }
  }
}

TEST_CASE("a failed resume keeps the bytes in host memory and can be repeated") {
  for (const auto* kind : {"take", "copy", "wait"}) {
    for (int after = 0; after < 4; ++after) {
      CAPTURE(kind);
      CAPTURE(after);
      Fixture f;
      f.take_and_fill();
      f.offload();
      f.fail(kind, after);
      CHECK_THROWS_AS(f.resume(), Error);
      CHECK(f.region.state() == RegionState::kResuming);
      CHECK(f.resume().moved_bytes == Fixture::kBytes);
      CHECK(f.is_whole());
    }
  }
}

TEST_CASE("errors of the device and the monitor come with the tag") {
  class ThrowingMonitor final : public WaitMonitor {
   public:
    void poll() override { throw Error(ExitCode::kPeerLost, "rank 3 is gone"); }
  };
  Fixture f;
  f.take_and_fill();
  ThrowingMonitor lost;
  try {
    f.region.offload(*f.queue, f.deadline, lost);
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kPeerLost);
    CHECK(error.context().tag == "optimizer");
  }
  f.resume();
  CHECK(f.is_whole());
}

TEST_CASE("no sequence of calls and failures loses a byte") {
  const char* const kinds[] = {"take", "release", "free", "host", "copy", "wait"};
  for (uint32_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    Fixture f;
    f.take_and_fill();
    for (int i = 0; i < 20; ++i) {
      if (random() % 2 == 0) f.fail(kinds[random() % 6], static_cast<int>(random() % 5));
      try {
        random() % 2 == 0 ? f.offload() : f.resume();
      } catch (const Error&) {  // the failure, or an offload while resuming
      }
      if (f.region.state() == RegionState::kResident) REQUIRE(f.is_whole());
    }
    f.script.fail_after.clear();
    f.resume();
    REQUIRE(f.is_whole());
    REQUIRE(f.region.held_bytes() == 4 * kFakeChunk);
  }
}

TEST_CASE("damage to offloaded bytes comes back, so that verification can find it") {
  Fixture f;
  f.take_and_fill();
  f.offload();
  test::offloaded_bytes(f.region, 1)[2] ^= std::byte{1};
  f.resume();
  CHECK(f.region.data()[kFakeChunk + 2] == (named(kFakeChunk + 2) ^ std::byte{1}));
  CHECK_FALSE(f.is_whole());
}

TEST_CASE("on host memory, an offload really frees the device and a resume brings the bytes back") {
  constexpr uint64_t kBytes = (128ULL << 20) + 4099;
  const auto device = make_host_device(0, 2);
  const auto free_at_start = device->memory().free_bytes;
  Region region(*device, "weights", Tag::kWeights, kBytes);
  const auto queue = device->make_queue();
  NoMonitor monitor;
  const Deadline deadline{Seconds(60)};
  region.take(deadline, monitor);
  std::byte* const data = region.data();
  for (uint64_t i = 0; i < kBytes; ++i) data[i] = named(i >> 3);
  CHECK(free_at_start - device->memory().free_bytes == region.held_bytes());

  region.offload(*queue, deadline, monitor);
  CHECK(region.held_bytes() == 0);
  CHECK(device->memory().free_bytes == free_at_start);
  CHECK(region.host_bytes() == kBytes);

  region.resume(*queue, deadline, monitor);
  REQUIRE(region.data() == data);
  bool right = true;
  for (uint64_t i = 0; i < kBytes; ++i) right = right && data[i] == named(i >> 3);
  CHECK(right);

  region.discard();
  CHECK(device->memory().free_bytes == free_at_start);
}
