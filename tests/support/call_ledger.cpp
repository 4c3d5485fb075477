#include "support/call_ledger.hpp"

#include <fmt/ranges.h>

#include <filesystem>
#include <iterator>
#include <utility>

#include "cycle/session.hpp"
#include "support/mpi_job.hpp"

namespace awex::test {
namespace {

size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

/// Books every call on the phase that was begun last.
class CallLedger final : public CycleObserver {
 public:
  explicit CallLedger(CountedUpdate& update) : update_(update) {}

  void phase_started(const PhaseEvent& event) override {
    if (event.region != nullptr) chunks_of(event.region->tag()) = event.region->range().chunks();
    book();
    update_.versions.resize(event.version);
    phase_ = fmt::format("{} {} {}", event.phase, event.role, event.tag);
  }

  void phase_finished(const PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {
    book();
    update_.versions.back().open_descriptors = open_descriptors();
  }

 private:
  void book() {
    auto now = calls_so_far();
    if (const auto calls = calls_between(before_, now); !calls.empty() && !phase_.empty()) {
      auto& booked = update_.versions.back().by_phase[phase_];
      booked = sum_of(std::move(booked), calls);
    }
    before_ = std::move(now);
  }

  uint64_t& chunks_of(Tag tag) {
    switch (tag) {
      case Tag::kWeights:
        return update_.chunks.weights;
      case Tag::kOptimizer:
        return update_.chunks.optimizer;
      case Tag::kKvCache:
        return update_.chunks.kv_cache;
    }
    throw runtime_error("a region with an unknown tag");
  }

  CountedUpdate& update_;
  CallCounts before_;
  std::string phase_;
};

}  // namespace

Request counted_options(BackendKind backend, const std::string& model, uint64_t layers) {
  Request options;
  options.job.model = model;
  options.job.layers = layers;
  options.job.backend = backend;
  options.job.kv_cache_bytes = 130ULL << 20;
  options.command.versions = kCountedVersions;
  options.job.timeout = Seconds{60};
  options.job.measure_limits = false;
  return options;
}

CountedUpdate count_update(const Request& options) {
  CountedUpdate update;
  CallLedger ledger(update);
  const Report report = run_command(options, job(), ledger);
  if (report.error) throw Error(*report.error);
  const int trainers = job().size() / 2;
  update.is_trainer = job().rank() < trainers;
  const auto weights = job().all_gather_value(update.chunks.weights, "the chunks of all ranks");
  if (!update.is_trainer) {
    update.chunks.mapped = weights[static_cast<size_t>(job().rank() - trainers)];
  }
  return update;
}

std::string describe(const std::map<std::string, CallCounts>& by_phase) {
  std::string text;
  for (const auto& [phase, calls] : by_phase) text += fmt::format("{}: {}; ", phase, calls);
  return text;
}

}  // namespace awex::test
