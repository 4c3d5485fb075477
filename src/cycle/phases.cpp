#include "cycle/phases.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "base/profiler_range.hpp"

namespace awex {

/// What one rank tells the others of the phases that it has been through.
struct PhaseRunner::Sample {
  struct Part {
    int32_t takes_part = 0;
    double start_s = 0;
    double seconds = 0;
    uint64_t bytes = 0;
  };
  std::array<Part, kMostSteps> parts{};  ///< By step.
  MemorySample memory;
};

namespace {

std::optional<double> limit_of(Link link, const Limits& limits) {
  switch (link) {
    case Link::kNone:
      return std::nullopt;
    case Link::kDeviceToHost:
      return limits.device_to_host;
    case Link::kHostToDevice:
      return limits.host_to_device;
    case Link::kDeviceToDevice:
      return limits.device_to_device;
  }
  return std::nullopt;
}

}  // namespace

PhaseRunner::PhaseRunner(Job& job, CycleObserver& observer, MemoryAccount& account,
                         std::function<MemorySample()> sample, Report& report)
    : job_(job),
      observer_(observer),
      account_(account),
      sample_(std::move(sample)),
      report_(report) {}

void PhaseRunner::take_baseline() {
  job_.agree(nullptr);
  check_leaks(job_.all_gather_value(sample_(), "memory samples"));
}

void PhaseRunner::run(std::span<const Step> steps) {
  for (const auto& step : steps) {
    if (step.begins) step.begins();
    if (step.is_of_engines) account_.others_were_at_work();
  }
  Sample sample = perform(steps);
  job_.agree(nullptr);
  // Nobody works between the agreement and the gathering of samples.
  sample.memory = sample_();
  const auto samples = job_.all_gather_value(sample, "the results of the phase");
  for (size_t i = 0; i < steps.size(); ++i) record(steps[i], i, samples);
  std::vector<MemorySample> memory;
  for (const auto& one : samples) memory.push_back(one.memory);
  check_leaks(memory);
  for (const auto& step : steps) {
    if (step.ended) step.ended();
  }
}

PhaseEvent PhaseRunner::event_of(const Step& step) const {
  const Role mine = job_.peers()[static_cast<size_t>(job_.rank())].role;
  const Phase& phase = step.phase;
  return {.phase = phase.name,
          .role = phase.role ? role_name(*phase.role) : "all",
          .tag = phase.tag ? tag_name(*phase.tag) : "",
          .version = report_.versions.back().version,
          .takes_part = !phase.role || *phase.role == mine,
          .region = step.region};
}

PhaseRunner::Sample PhaseRunner::perform(std::span<const Step> steps) {
  Sample sample;
  for (size_t i = 0; i < steps.size(); ++i) {
    const PhaseEvent event = event_of(steps[i]);
    auto& part = sample.parts.at(i);
    // A rank that only looks on is already on its way to the next of its own.
    if (event.takes_part || steps.size() == 1) job_.set_phase(event.phase);
    part.takes_part = event.takes_part ? 1 : 0;
    part.start_s = job_.now();
    const ProfilerRange range(fmt::format("{} {} {}", event.phase, event.role, event.tag));
    try {
      observer_.phase_started(event);
      if (event.takes_part) part.bytes = steps[i].work();
    } catch (const Error& error) {
      // A mismatch that one rank finds is found when all that others wait for is done: they are on
      // their way to agree.
      const bool is_own = error.code() == ExitCode::kMismatch && !job_.failure_is_agreed();
      if (is_own) job_.agree(&error);
      throw;
    }
    part.seconds = job_.now() - part.start_s;
  }
  return sample;
}

void PhaseRunner::record(const Step& step, size_t index, const std::vector<Sample>& samples) {
  const PhaseEvent event = event_of(step);
  PhaseReport result;
  result.phase = event.phase;
  result.role = event.role;
  result.tag = event.tag;
  double end = 0;
  double moving_ranks = 0;
  for (size_t rank = 0; rank < samples.size(); ++rank) {
    const auto& one = samples[rank].parts.at(index);
    if (one.takes_part == 0) continue;
    result.start_s = result.ranks.empty() ? one.start_s : std::min(result.start_s, one.start_s);
    end = std::max(end, one.start_s + one.seconds);
    result.bytes += one.bytes;
    if (one.bytes > 0) moving_ranks += 1;
    result.ranks.push_back({static_cast<int>(rank), one.start_s, one.seconds, one.bytes});
  }
  result.seconds = end - result.start_s;
  const auto limit = limit_of(step.phase.link, report_.limits);
  if (limit && moving_ranks > 0) result.limit_bytes_per_s = *limit * moving_ranks;
  observer_.phase_finished(event, result.seconds, result.bytes);
  report_.versions.back().phases.push_back(std::move(result));
}

void PhaseRunner::check_leaks(const std::vector<MemorySample>& samples) {
  const auto leak = account_.add(samples);
  if (!leak) return;
  auto there = job_.context_of(leak->rank);
  auto error = runtime_error(
      fmt::format("{} of the memory of gpu {} of host {} are gone that no "
                  "region holds",
                  format_bytes(static_cast<uint64_t>(leak->bytes)), there.gpu, there.host),
      "memory that was given back did not return, or another program "
      "took some: compare with nvidia-smi");
  // Which of the ranks on it lost the memory, the GPU does not tell.
  error.context().host = std::move(there.host);
  error.context().gpu = std::move(there.gpu);
  job_.fail_together(error);
}

}  // namespace awex
