#include "cycle/phases.hpp"

#include <algorithm>
#include <exception>
#include <utility>

namespace awex {

/// What one rank tells the others of a phase.
struct PhaseRunner::Sample {
  int32_t takes_part = 0;
  double start_s = 0;
  double seconds = 0;
  uint64_t bytes = 0;
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

void PhaseRunner::run(const Phase& phase, Region* region, const std::function<uint64_t()>& work) {
  const Role mine = job_.peers()[static_cast<size_t>(job_.rank())].role;
  const PhaseEvent event{.phase = phase.name,
                         .role = phase.role ? role_name(*phase.role) : "all",
                         .tag = phase.tag ? tag_name(*phase.tag) : "",
                         .version = report_.versions.back().version,
                         .takes_part = !phase.role || *phase.role == mine,
                         .region = region};
  job_.set_phase(event.phase);
  Sample sample;
  sample.takes_part = event.takes_part ? 1 : 0;
  sample.start_s = job_.now();
  sample.bytes = perform(event, work);
  sample.seconds = job_.now() - sample.start_s;
  job_.agree(nullptr);
  // Nobody works between the agreement and the gathering of samples.
  sample.memory = sample_();
  const auto samples = job_.all_gather_value(sample, "the results of the phase");
  record(phase, event, samples);
  std::vector<MemorySample> memory;
  for (const auto& one : samples) memory.push_back(one.memory);
  check_leaks(memory);
}

uint64_t PhaseRunner::perform(const PhaseEvent& event, const std::function<uint64_t()>& work) {
  try {
    observer_.phase_started(event);
    return event.takes_part ? work() : 0;
  } catch (const Error& error) {
    // A mismatch is found when all work is done: the other ranks are on their way to agree.
    if (error.code() == ExitCode::kMismatch) job_.agree(&error);
    throw;
  }
}

void PhaseRunner::record(const Phase& phase, const PhaseEvent& event,
                         const std::vector<Sample>& samples) {
  PhaseReport result;
  result.phase = event.phase;
  result.role = event.role;
  result.tag = event.tag;
  double end = 0;
  double moving_ranks = 0;
  for (size_t rank = 0; rank < samples.size(); ++rank) {
    const auto& one = samples[rank];
    if (one.takes_part == 0) continue;
    result.start_s = result.ranks.empty() ? one.start_s : std::min(result.start_s, one.start_s);
    end = std::max(end, one.start_s + one.seconds);
    result.bytes += one.bytes;
    if (one.bytes > 0) moving_ranks += 1;
    result.ranks.push_back({static_cast<int>(rank), one.start_s, one.seconds, one.bytes});
  }
  result.seconds = end - result.start_s;
  const auto limit = limit_of(phase.link, report_.limits);
  if (limit && moving_ranks > 0) result.limit_bytes_per_s = *limit * moving_ranks;
  observer_.phase_finished(event, result.seconds, result.bytes);
  report_.versions.back().phases.push_back(std::move(result));
}

void PhaseRunner::check_leaks(const std::vector<MemorySample>& samples) {
  const auto leak = account_.add(samples);
  if (!leak) return;
  fail_together(job_, runtime_error(fmt::format("{} of device memory on the GPU of {} are gone "
                                                "that no region holds",
                                                format_bytes(static_cast<uint64_t>(leak->bytes)),
                                                job_.describe(leak->rank)),
                                    "memory that was given back did not return, or another program "
                                    "took some: compare with nvidia-smi"));
}

}  // namespace awex
