#include "transfer/region_proof.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"

using namespace awex;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;

/// A resident region of three chunks, with segments of which one lies in all chunks.
struct Fixture {
  static constexpr uint64_t kBytes = 130 * kMiB + 12;

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
  void offload() {
    proof.begin();
    region.offload(*queue, deadline, monitor, [&](uint64_t chunk) { proof.add(chunk); });
    proof.finish_record(deadline, monitor);
  }
  void resume() {
    proof.begin();
    region.resume(*queue, deadline, monitor, [&](uint64_t chunk) { proof.add(chunk); });
    proof.finish_check(deadline, monitor);
  }
  /// Flips a bit of the offloaded bytes.
  void damage(uint64_t at) {
    const uint64_t chunk_bytes = region.range().chunk_bytes();
    region.mutable_backup(at / chunk_bytes)[at % chunk_bytes] ^= std::byte{0x10};
  }
};

}  // namespace

TEST_CASE("what went and came back is what it was, as often as it goes") {
  Fixture f;
  REQUIRE(f.region.range().chunks() == 3);
  for (int cycle = 0; cycle < 2; ++cycle) {
    f.offload();
    ThreadPool threads(2);
    CHECK(f.proof.check_backup(threads) == 125 * kMiB + 16);
    f.resume();
    f.region.data()[77 * kMiB] ^= std::byte{1};  // what is recorded next
  }
}

TEST_CASE("a flipped bit is found in whichever chunk it is, and its segment named") {
  struct Case {
    uint64_t at;
    const char* segment;
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
      CHECK(error.context().tensor == one.segment);
      CHECK(error.context().tag == "optimizer");
    }
  }
}

TEST_CASE("what belongs to no segment proves nothing") {
  Fixture f;
  f.offload();
  f.damage(127 * kMiB);
  f.resume();
}
