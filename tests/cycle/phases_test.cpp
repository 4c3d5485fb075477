// What PhaseRunner tells of memory that is gone.
#include "cycle/phases.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "support/mpi_job.hpp"

namespace {

using awex::test::job;

constexpr uint64_t kFreeBytes = 1 << 20;
constexpr uint64_t kPageBytes = 4096;

class NoObserver final : public awex::CycleObserver {
 public:
  void phase_started(const awex::PhaseEvent& /*event*/) override {}
  void phase_finished(const awex::PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}
};

/// The failure of a phase in which a rank loses a page.
std::optional<awex::Error> failure_of_leak(int leaking) {
  NoObserver observer;
  awex::DeviceMap devices;
  for (const auto& peer : job().peers()) {
    devices.physical.push_back(peer.role_rank);
    devices.gpus = std::max(devices.gpus, peer.device.index + 1);
  }
  awex::MemoryAccount account(awex::BackendKind::kHost, job().peers(), devices);
  awex::MemorySample sample;
  sample.free_bytes = kFreeBytes;
  awex::Report report;
  report.versions.emplace_back();
  awex::PhaseRunner phases(
      job(), observer, account, [&sample] { return sample; }, report);
  phases.take_baseline();
  const auto lose = [&]() -> uint64_t {
    if (job().rank() == leaking) sample.free_bytes -= kPageBytes;
    return 0;
  };
  try {
    phases.run({.phase = {"discard", {}, {}}, .region = nullptr, .work = lose});
  } catch (const awex::Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE(
    "memory that is gone is told of the GPU that lacks it, and of no rank, in the phase before") {
  for (int leaking = 0; leaking < job().size(); ++leaking) {
    const auto error = failure_of_leak(leaking);
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
