#include "transfer/prove/region_proof.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "model/digest.hpp"
#include "support/offloaded_bytes.hpp"

using namespace awex;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;

/// A resident region of three chunks, with runs of which one lies in all chunks.
struct Fixture {
  static constexpr uint64_t kBytes = 130 * kMiB + 12;
  static constexpr uint64_t kChunks = 3;

  std::unique_ptr<Device> device = make_host_device(0, 2);
  std::unique_ptr<Kernels> kernels = make_kernels(*device, 2);
  std::unique_ptr<CopyQueue> queue = device->make_queue();
  NoMonitor monitor;
  Deadline deadline{Seconds(60)};
  Region region{*device, "trainer optimizer", Tag::kOptimizer, kBytes};
  RegionProof proof{prepare(region),
                    {{"first", 0, 40 * kMiB + 4, 4},
                     {"long", 40 * kMiB + 4, 85 * kMiB, 2},
                     {"last", 130 * kMiB, 12, 1}},
                    *kernels};

  /// Content that names its place.
  Region& prepare(Region& of) {
    of.take(deadline, monitor);
    auto* words = reinterpret_cast<uint32_t*>(of.data());
    for (uint32_t i = 0; i < kBytes / 4; ++i) words[i] = i * 2654435761U;
    return of;
  }
  RegionChange offload() { return proof.offload(*queue, deadline, monitor); }
  RegionChange resume() { return proof.resume(*queue, deadline, monitor); }
  /// Of all chunks that have them.
  [[nodiscard]] std::vector<uint64_t> records() const {
    std::vector<uint64_t> all;
    for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
      if (const auto& digests = proof.recorded(chunk)) {
        all.insert(all.end(), digests->begin(), digests->end());
      }
    }
    return all;
  }
  [[nodiscard]] bool is_whole() const {
    const auto* words = reinterpret_cast<const uint32_t*>(region.data());
    for (uint32_t i = 0; i < kBytes / 4; ++i) {
      if (words[i] != i * 2654435761U) return false;
    }
    return true;
  }
  /// Flips a bit of the offloaded bytes.
  void damage(uint64_t at) {
    const uint64_t chunk_bytes = region.range().chunk_bytes();
    test::offloaded_bytes(region, at / chunk_bytes)[at % chunk_bytes] ^= std::byte{0x10};
  }
};

/// Ends a call in one of its waits.
class ThrowingMonitor final : public WaitMonitor {
 public:
  explicit ThrowingMonitor(int waits) : waits_(waits) {}
  void poll() override {
    if (waits_-- == 0) throw Error(ExitCode::kPeerLost, "rank 3 is gone");
  }

 private:
  int waits_;  ///< That go well.
};

}  // namespace

TEST_CASE("what went and came back is what it was, as often as it goes") {
  Fixture f;
  REQUIRE(f.region.range().chunks() == Fixture::kChunks);
  for (int cycle = 0; cycle < 2; ++cycle) {
    f.offload();
    ThreadPool threads(2);
    CHECK(f.proof.check_backup(threads) == 125 * kMiB + 16);
    f.resume();
    f.region.data()[77 * kMiB] ^= std::byte{1};  // what is recorded next
  }
}

TEST_CASE("a flipped bit is found in whichever chunk it is, and its run named") {
  struct Case {
    uint64_t at;
    const char* run;
  };
  const Case cases[] = {{3, "first"},
                        {40 * kMiB + 3, "first"},
                        {40 * kMiB + 4, "long"},
                        {60 * kMiB + 1, "long"},
                        {125 * kMiB + 3, "long"},
                        {130 * kMiB + 11, "last"}};
  Fixture f;
  for (const auto& one : cases) {
    CAPTURE(one.at);
    f.offload();
    f.damage(one.at);
    try {
      f.resume();
      FAIL_CHECK("nothing was thrown");
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::kMismatch);
      CHECK(error.context().tensor == one.run);
      CHECK(error.context().tag == "optimizer");
    }
    f.region.data()[one.at] ^= std::byte{0x10};
  }
}

TEST_CASE("what came back wrong stays so until it is right: nothing takes it for what was") {
  Fixture f;
  f.offload();
  f.damage(60 * kMiB);
  for (int times = 0; times < 2; ++times) {
    CHECK_THROWS_WITH_AS(f.resume(), doctest::Contains("what of long lies in chunk 2 of 3"), Error);
    CHECK_THROWS_WITH_AS(f.offload(), doctest::Contains("what of long"), Error);
  }
  CHECK(f.region.state() == RegionState::kResident);
  f.region.data()[60 * kMiB] ^= std::byte{0x10};
  CHECK_FALSE(f.resume().changed);
  f.offload();
  f.resume();
  CHECK(f.is_whole());
}

TEST_CASE("what came back and was not compared is compared later") {
  Fixture f;
  constexpr int kWaits = Fixture::kChunks + Fixture::kChunks;  // for memory, for copies
  for (const bool is_damaged : {true, false}) {
    f.offload();
    if (is_damaged) f.damage(3);
    ThrowingMonitor monitor(kWaits);
    CHECK_THROWS_WITH_AS(f.proof.resume(*f.queue, f.deadline, monitor), "rank 3 is gone", Error);
    CHECK(f.region.state() == RegionState::kResident);
    if (is_damaged) {
      CHECK_THROWS_WITH_AS(f.resume(), doctest::Contains("what of first"), Error);
      f.region.data()[3] ^= std::byte{0x10};
    }
    CHECK_FALSE(f.resume().changed);
  }
}

TEST_CASE("what goes in parts is proven as what goes at once") {
  Fixture whole;
  whole.offload();
  Fixture f;
  ThreadPool threads(2);
  for (int cycle = 0; cycle < 2; ++cycle) {
    f.proof.offload(*f.queue, f.deadline, f.monitor, 1);
    CHECK(f.region.state() == RegionState::kOffloading);
    CHECK(f.region.held_bytes() == whole.region.lacking_bytes() - f.region.lacking_bytes());
    CHECK(f.proof.recorded(0));
    CHECK_FALSE(f.proof.recorded(1));
    CHECK_THROWS_AS(f.proof.check_backup(threads), Error);
    f.offload();
    CHECK(f.region.state() == RegionState::kOffloaded);
    CHECK(f.records() == whole.records());
    f.proof.check_backup(threads);
    f.resume();
    CHECK(f.is_whole());
  }
}

TEST_CASE("a part that comes back is proven, and is no copy of the whole") {
  Fixture f;
  f.offload();
  f.resume();
  f.proof.offload(*f.queue, f.deadline, f.monitor, 1);
  f.resume();
  CHECK(f.is_whole());
  CHECK_FALSE(f.region.has_copy());
  f.proof.offload(*f.queue, f.deadline, f.monitor, 1);
  f.damage(3);
  CHECK_THROWS_WITH_AS(f.resume(), doctest::Contains("what of first lies in chunk 1 of 3"), Error);
}

TEST_CASE("a chunk is recorded when its copy is told of, each run's part alone") {
  Fixture f;
  uint64_t told = 0;
  f.proof.offload(*f.queue, f.deadline, f.monitor, kEverything, [&](uint64_t chunk) {
    CHECK(chunk == told++);
    CHECK(f.region.range().is_taken(chunk));
    REQUIRE(f.proof.recorded(chunk));
    const auto parts = f.proof.parts(chunk);
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto& [run, offset, bytes, first_index] = parts[i];
      const auto& proven = f.proof.runs()[run];
      CHECK((*f.proof.recorded(chunk))[i] == digest_elements(tensor_key(proven.name),
                                                             proven.element_size, first_index,
                                                             {f.region.data() + offset, bytes}));
      CHECK(first_index * proven.element_size == offset - proven.offset_bytes);
    }
  });
  CHECK(told == Fixture::kChunks);
  CHECK(f.proof.parts(0).size() == 2);
  CHECK(f.proof.parts(1).size() == 1);
  CHECK(f.proof.parts(2).size() == 2);
}

TEST_CASE("a chunk whose copy nobody takes note of stays, and leaves later") {
  Fixture f;
  const auto refuses = [](uint64_t chunk) {
    if (chunk == 1) throw Error(ExitCode::kDeadline, "nobody answers");
  };
  CHECK_THROWS_AS(f.proof.offload(*f.queue, f.deadline, f.monitor, kEverything, refuses), Error);
  CHECK_FALSE(f.region.range().is_taken(0));
  CHECK(f.region.range().is_taken(1));
  CHECK_FALSE(f.region.is_in_host(1));
  std::vector<uint64_t> told;
  f.proof.offload(*f.queue, f.deadline, f.monitor, kEverything,
                  [&](uint64_t chunk) { told.push_back(chunk); });
  CHECK(told == std::vector<uint64_t>{1, 2});
  f.resume();
  CHECK(f.is_whole());
}

TEST_CASE("what belongs to no run proves nothing") {
  Fixture f;
  f.offload();
  f.damage(127 * kMiB);
  f.resume();
}

TEST_CASE("what is so already leaves the record as it is") {
  Fixture f;
  CHECK_FALSE(f.resume().changed);
  CHECK(f.offload().moved_bytes == Fixture::kBytes);
  CHECK_FALSE(f.offload().changed);
  ThreadPool threads(2);
  CHECK(f.proof.check_backup(threads) > 0);
  CHECK(f.resume().moved_bytes == Fixture::kBytes);
  CHECK_FALSE(f.resume().changed);
  f.region.discard();
  CHECK(f.resume().changed);  // memory without bytes: nothing to compare
  CHECK(f.region.state() == RegionState::kResident);
}

/// For copies and for digests.
constexpr int kWaitsOfOffload = Fixture::kChunks + Fixture::kChunks;

TEST_CASE("an offload that failed goes on, as proven as one that did not") {
  Fixture whole;
  whole.offload();
  ThreadPool threads(2);
  Fixture f;
  f.region.prepare_backup();
  for (int waits = 0; waits < kWaitsOfOffload; ++waits) {
    CAPTURE(waits);
    ThrowingMonitor once(waits);
    CHECK_THROWS_AS(f.proof.offload(*f.queue, f.deadline, once), Error);
    CHECK_THROWS_AS(f.proof.check_backup(threads), Error);
    ThrowingMonitor again(1);
    try {
      f.proof.offload(*f.queue, f.deadline, again);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::kPeerLost);
    }
    CHECK(f.proof.can_go_on());
    f.offload();
    CHECK(f.records() == whole.records());
    f.proof.check_backup(threads);
    f.resume();
    CHECK(f.is_whole());
  }
}

TEST_CASE("what has left before an offload failed is proven when it comes back") {
  Fixture f;
  f.region.prepare_backup();
  for (int waits = 0; waits < kWaitsOfOffload; ++waits) {
    CAPTURE(waits);
    ThrowingMonitor monitor(waits);
    CHECK_THROWS_AS(f.proof.offload(*f.queue, f.deadline, monitor), Error);
    f.resume();
    CHECK(f.is_whole());
    ThrowingMonitor next(waits);
    CHECK_THROWS_AS(f.proof.offload(*f.queue, f.deadline, next), Error);
    const bool has_left = !f.region.range().is_taken(0);
    if (has_left) {
      f.damage(3);
      CHECK_THROWS_WITH_AS(f.resume(), doctest::Contains("what of first lies in chunk 1 of 3"),
                           Error);
      f.region.data()[3] ^= std::byte{0x10};
    } else {
      f.resume();
    }
    CHECK(has_left == (waits >= 2));  // the first chunk's copy and digest
    CHECK(f.is_whole());
  }
}

TEST_CASE("what has begun to leave without a proof is not taken for proven") {
  Fixture f;
  f.proof.offload(*f.queue, f.deadline, f.monitor, 1);
  f.proof.leave_unproven();
  f.region.offload(*f.queue, f.deadline, f.monitor, {}, 1);
  CHECK_FALSE(f.proof.can_go_on());
  try {
    f.offload();
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRuntime);
    CHECK(error.hint() == "resume it, then offload it again");
    CHECK(error.context().tag == "optimizer");
  }
  f.resume();
  CHECK(f.is_whole());
  CHECK(f.proof.can_go_on());
}

TEST_CASE("a resume that failed is proven when it is repeated") {
  Fixture f;
  constexpr int kWaits = 3 + 3;  // for memory, for copies
  for (int waits = 0; waits < kWaits; ++waits) {
    CAPTURE(waits);
    f.offload();
    ThrowingMonitor monitor(waits);
    CHECK_THROWS_AS(f.proof.resume(*f.queue, f.deadline, monitor), Error);
    CHECK_THROWS_AS(f.offload(), Error);  // not while it is resuming
    CHECK(f.resume().moved_bytes == Fixture::kBytes);
  }
  CHECK(f.is_whole());
}

TEST_CASE("what was offloaded last is brought back over what is there, and is proven") {
  Fixture f;
  CHECK_THROWS_AS(f.proof.bring_back(*f.queue, f.deadline, f.monitor), Error);  // nothing was yet
  f.region.prepare_backup();
  CHECK_THROWS_AS(f.proof.bring_back(*f.queue, f.deadline, f.monitor), Error);  // room is no copy
  f.offload();
  CHECK_THROWS_AS(f.proof.bring_back(*f.queue, f.deadline, f.monitor), Error);  // not resident
  f.resume();
  std::fill_n(f.region.data(), f.region.bytes(), std::byte{0x77});
  const auto change = f.proof.bring_back(*f.queue, f.deadline, f.monitor);
  CHECK(change.moved_bytes == Fixture::kBytes);
  CHECK(f.is_whole());
  f.damage(60 * kMiB);
  try {
    f.proof.bring_back(*f.queue, f.deadline, f.monitor);
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kMismatch);
    CHECK(error.context().tensor == "long");
  }
}

TEST_CASE("an offload that fails leaves no copy of two moments") {
  Fixture f;
  f.offload();
  f.resume();
  CHECK(f.region.has_copy());
  ThrowingMonitor monitor(0);
  try {
    f.region.offload(*f.queue, f.deadline, monitor);
  } catch (const Error&) {
    CHECK_FALSE(f.region.has_copy());
  }
  f.region.resume(*f.queue, f.deadline, f.monitor);
  f.region.data()[0] ^= std::byte{1};
  f.region.offload(*f.queue, f.deadline, f.monitor);
  f.region.resume(*f.queue, f.deadline, f.monitor);
  CHECK(f.region.has_copy());
}

TEST_CASE("an unproven offload is not compared with an older record") {
  Fixture f;
  f.offload();
  f.resume();
  f.region.data()[5] ^= std::byte{1};
  f.proof.leave_unproven();
  f.region.offload(*f.queue, f.deadline, f.monitor);
  CHECK_NOTHROW(f.resume());
}
