// Updates within budgets of device memory, from the least that a cycle needs to more than both
// roles can hold: never more is held, no more than was promised, and the weights are always the
// same.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "base/checked.hpp"
#include "cycle/needs.hpp"
#include "cycle/session.hpp"
#include "layout/engines.hpp"
#include "model/weights.hpp"
#include "support/mpi_job.hpp"
#include "support/random_model.hpp"
#include "support/whole_plan.hpp"

namespace awex::test {
namespace {

class Silent final : public CycleObserver {
 public:
  void phase_started(const PhaseEvent& /*event*/) override {}
  void phase_finished(const PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}
};

Request random_options(Dice& dice) {
  constexpr uint64_t kMiB = 1 << 20;
  const uint64_t devices = static_cast<uint64_t>(job().size()) / 2;
  Request options;
  options.job.model = dice.any_of<const char*>(
      {"preset:tiny-dense", "preset:tiny-moe", "preset:tiny-mla", "preset:tiny-dense-tied"});
  options.job.layers = dice.between(1, 4);
  options.job.trainer = fmt::format("megatron:tp={}", dice.one_of({1, devices}));
  options.job.inference = fmt::format("sglang:tp={}", dice.one_of({1, devices}));
  options.job.backend = BackendKind::kHost;
  options.job.optimizer = !dice.one_in(4);
  options.job.kv_cache_bytes = dice.one_of({0, 3 * kMiB, 130 * kMiB});
  options.command.versions = 2;
  options.job.timeout = Seconds{60};
  options.job.measure_limits = false;
  return options;
}

/// What the fullest device needs.
DeviceNeeds needs_of(const Request& options) {
  const auto source = open_model(options.job.model, options.job.layers);
  const auto devices = static_cast<uint32_t>(job().size() / 2);
  const auto trainer = make_trainer_layout(options.job.trainer, source->catalogue(), devices);
  const auto inference = make_inference_layout(options.job.inference, source->catalogue(), devices);
  Placement placement;
  for (uint32_t device = 0; device < devices; ++device) {
    placement.trainer_device.push_back(device);
    placement.inference_device.push_back(device);
    placement.device_node.push_back(0);
  }
  const auto plan = make_plan(source->catalogue(), all_rank_layouts(*trainer),
                              all_rank_layouts(*inference), placement);
  const Belongings belongings{options.job.optimizer, options.job.kv_cache_bytes,
                              plan.remote_bytes > 0};
  const auto needs =
      needs_of_devices(*trainer, *inference, source->catalogue(), placement, belongings);
  return *std::max_element(needs.begin(), needs.end(), [](const auto& a, const auto& b) {
    return peak_of_cycle(a, true).bytes < peak_of_cycle(b, true).bytes;
  });
}

uint64_t final_digest(const Report& report) { return report.versions.back().digest.value().model; }

}  // namespace

TEST_CASE("no budget is exceeded, and no byte is different within it") {
  Dice dice(5);
  for (int round = 0; round < random_cases(20); ++round) {
    Request options = random_options(dice);
    Silent observer;
    options.job.offload = false;
    const Report plain = run_command(options, job(), observer);
    REQUIRE(!plain.error);
    options.job.offload = true;
    const DeviceNeeds needs = needs_of(options);
    const uint64_t least = peak_of_cycle(needs, true).bytes;
    const uint64_t most = peak_of_cycle(needs, true, ~uint64_t{0}).bytes;
    for (const uint64_t budget : {least, dice.between(least, most), most}) {
      CAPTURE(options.job.model.name());
      CAPTURE(options.job.trainer.text());
      CAPTURE(options.job.inference.text());
      CAPTURE(budget);
      options.job.gpu_memory = budget;
      const Report report = run_command(options, job(), observer);
      REQUIRE_MESSAGE(!report.error, report.error->what());
      CHECK(report.memory.device_peak_bytes.value() <= budget);
      CHECK(report.memory.device_peak_bytes.value() <= peak_of_cycle(needs, true, budget).bytes);
      CHECK(final_digest(report) == final_digest(plain));
    }
    options.job.gpu_memory = least - 1;
    const Report refused = run_command(options, job(), observer);
    REQUIRE(refused.error);
    CHECK(refused.error->code() == ExitCode::kRequest);
  }
}

}  // namespace awex::test
