// An update in which inference keeps the trainer's weights mapped. The memory that the trainer then
// gives back stays taken, as on a GPU, and the books find it. The linker's --wrap sends our code's
// calls of MappedChunks::unmap here.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "cycle/session.hpp"
#include "support/mpi_job.hpp"

namespace {

bool g_keeps_mappings = false;

}  // namespace

extern "C" {
void __real__ZN4awex12MappedChunks5unmapEv(awex::MappedChunks* range);
void __wrap__ZN4awex12MappedChunks5unmapEv(awex::MappedChunks* range) {
  if (!g_keeps_mappings) __real__ZN4awex12MappedChunks5unmapEv(range);
}
}

namespace awex::test {
namespace {

/// Learns how much memory this rank's weights hold.
class WeightsWatcher final : public CycleObserver {
 public:
  void phase_started(const PhaseEvent& event) override {
    if (event.region == nullptr || event.region->tag() != Tag::kWeights) return;
    held_bytes_ = std::max(held_bytes_, event.region->held_bytes());
  }
  void phase_finished(const PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}

  [[nodiscard]] uint64_t held_bytes() const { return held_bytes_; }

 private:
  uint64_t held_bytes_ = 0;
};

Request request() {
  Request request;
  request.job.model = "preset:tiny-dense";
  request.job.trainer = "megatron:tp=1";
  request.job.inference = "sglang:tp=1";
  request.job.backend = BackendKind::kHost;
  request.job.optimizer = false;
  request.job.kv_cache_bytes = 1 << 20;
  request.job.timeout = Seconds{60};
  request.job.measure_limits = false;
  request.command.versions = 2;
  return request;
}

}  // namespace

TEST_CASE("weights that inference keeps mapped are told as a leak of just their bytes") {
  WeightsWatcher watcher;
  g_keeps_mappings = true;
  const Report report = run_command(request(), job(), watcher);
  g_keeps_mappings = false;
  REQUIRE(report.error.has_value());
  REQUIRE(job().failure_is_agreed());
  const std::string message = report.error->what();
  CAPTURE(message);
  CHECK(message.find("of the memory of gpu 0 of host") != std::string::npos);
  CHECK(message.find("are gone that no region holds") != std::string::npos);
  CHECK(report.committed_version == 1);
  const auto held = job().all_gather_value(watcher.held_bytes(), "what weights hold");
  CHECK(held.front() > 0);
  CHECK(report.memory.leaked_bytes == static_cast<int64_t>(held.front()));
}

TEST_CASE("weights that inference lets go are none, also after such an update") {
  WeightsWatcher watcher;
  const Report report = run_command(request(), job(), watcher);
  CHECK_FALSE(report.error.has_value());
  CHECK(report.memory.leaked_bytes == 0);
}

}  // namespace awex::test
