// What PhaseRunner tells of memory that is gone.
#include "cycle/phases.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "support/mpi_job.hpp"

namespace {

using awex::test::job;

constexpr uint64_t kFreeBytes = 1ULL << 30;
constexpr uint64_t kPageBytes = 4096;

class NoObserver final : public awex::CycleObserver {
 public:
  void phase_started(const awex::PhaseEvent& /*event*/) override {}
  void phase_finished(const awex::PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}
};

/// A rank loses some of its memory in a phase.
struct Loss {
  awex::BackendKind backend = awex::BackendKind::kHost;
  int rank = 0;
  uint64_t bytes = kPageBytes;
  bool is_of_engines = false;
};

/// The failure of that phase.
std::optional<awex::Error> failure_of(const Loss& loss) {
  NoObserver observer;
  awex::DeviceMap devices;
  for (const auto& peer : job().peers()) {
    devices.physical.push_back(peer.role_rank);
    devices.gpus = std::max(devices.gpus, peer.device.index + 1);
  }
  awex::MemoryAccount account(loss.backend, job().peers(), devices);
  awex::MemorySample sample;
  sample.free_bytes = kFreeBytes;
  awex::Report report;
  report.versions.emplace_back();
  awex::PhaseRunner phases(
      job(), observer, account, [&sample] { return sample; }, report);
  phases.take_baseline();
  const auto lose = [&]() -> uint64_t {
    if (job().rank() == loss.rank) sample.free_bytes -= loss.bytes;
    return 0;
  };
  try {
    phases.run({.phase = {"discard", {}, {}},
                .region = nullptr,
                .work = lose,
                .is_of_engines = loss.is_of_engines});
  } catch (const awex::Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE(
    "memory that is gone is told of the GPU that lacks it, and of no rank, in the phase before") {
  for (int leaking = 0; leaking < job().size(); ++leaking) {
    const auto error = failure_of({.rank = leaking});
    CHECK(error.has_value());
    CHECK(job().failure_is_agreed());
    if (!error) continue;
    CHECK(error->code() == awex::ExitCode::kRuntime);
    CHECK(std::string(error->what()).find("4.10 kB") != std::string::npos);
    const auto& context = error->context();
    const auto& peer = job().peers()[static_cast<size_t>(leaking)];
    CHECK(context.host == peer.node.name());
    CHECK(context.gpu == std::to_string(peer.device.index));
    CHECK(context.phase == "discard");
    CHECK_FALSE(context.rank.has_value());
    CHECK(context.role.empty());
  }
}

TEST_CASE("what an engine moves itself is not lost, on a GPU that all of its processes share") {
  constexpr uint64_t kWeightsBytes = 100 << 20;
  for (int rank = 0; rank < job().size(); ++rank) {
    Loss loss{awex::BackendKind::kCuda, rank, kWeightsBytes, /*is_of_engines=*/true};
    CHECK_FALSE(failure_of(loss));
    loss.is_of_engines = false;
    CHECK(failure_of(loss).has_value());
    // A rank's own pages are its own, whoever moves something.
    CHECK(failure_of({awex::BackendKind::kHost, rank, kPageBytes, /*is_of_engines=*/true}));
  }
}
