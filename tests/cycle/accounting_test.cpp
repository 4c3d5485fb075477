#include "cycle/accounting.hpp"

#include <doctest/doctest.h>

#include <array>
#include <optional>

#include "cycle/budget.hpp"

namespace awex {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPeak = 15 * kMiB;

/// A trainer and an inference rank on one GPU.
struct OneGpu {
  std::vector<Peer> peers{{0, Role::kTrainer, 0, 10, {fixed_text<72>("a"), {}}, {}},
                          {1, Role::kInference, 0, 11, {fixed_text<72>("a"), {}}, {}}};
  DeviceMap devices{.placement = {{0}, {0}, {0}}, .physical = {0, 0}, .gpus = 1, .partner = 1};
};

MemorySample sample(uint64_t weights, uint64_t free_bytes, uint64_t host = 0) {
  MemorySample sample;
  sample.held[0] = weights;
  sample.host[0] = host;
  sample.free_bytes = free_bytes;
  sample.device_peak = kPeak;
  return sample;
}

TEST_CASE("on host every rank sees its own pages, and one page too many is a leak") {
  const OneGpu gpu;
  MemoryAccount account(BackendKind::kHost, gpu.peers, gpu.devices);
  CHECK_FALSE(account.leaked_bytes(0));
  CHECK_FALSE(account.add({sample(8 * kMiB, 992 * kMiB), sample(0, 1000 * kMiB)}));
  CHECK_FALSE(account.add({sample(8 * kMiB, 992 * kMiB), sample(6 * kMiB, 994 * kMiB)}));
  CHECK_FALSE(account.add({sample(0, 1000 * kMiB), sample(6 * kMiB, 994 * kMiB)}));
  const auto leak = account.add({sample(0, 1000 * kMiB - 4096), sample(6 * kMiB, 994 * kMiB)});
  REQUIRE(leak);
  CHECK(leak->bytes == 4096);
  CHECK(leak->rank == 0);
  CHECK(account.leaked_bytes(0) == 4096);
  CHECK(account.leaked_bytes(1) == 0);
  const auto report = account.report();
  CHECK(report.device_peak_bytes == kPeak);
  CHECK(report.leaked_bytes == 4096);
}

TEST_CASE("on cuda both ranks see the whole device, and a chunk that stays is a leak") {
  const OneGpu gpu;
  MemoryAccount account(BackendKind::kCuda, gpu.peers, gpu.devices);
  const auto add = [&](uint64_t trainer, uint64_t inference, uint64_t free_bytes, uint64_t host) {
    return account.add({sample(trainer, free_bytes, host), sample(inference, free_bytes)});
  };
  CHECK_FALSE(add(640 * kMiB, 0, 9000 * kMiB, 0));
  CHECK_FALSE(add(640 * kMiB, 640 * kMiB, 8360 * kMiB, 0));
  // Offloaded, with pinned host memory whose page tables take an 512th on the device.
  CHECK_FALSE(add(0, 640 * kMiB, 9000 * kMiB - 40 * kMiB, 20480 * kMiB));
  const auto leak = add(0, 640 * kMiB, 9000 * kMiB - 40 * kMiB - 64 * kMiB, 20480 * kMiB);
  REQUIRE(leak);
  CHECK(leak->bytes == static_cast<int64_t>(64 * kMiB));
  for (const int rank : {0, 1}) CHECK(account.leaked_bytes(rank) == leak->bytes);
}

TEST_CASE("what others took between two commands is theirs, and in a command it is a leak") {
  const OneGpu gpu;
  MemoryAccount account(BackendKind::kCuda, gpu.peers, gpu.devices);
  const auto add = [&](uint64_t trainer, uint64_t free_bytes) {
    return account.add({sample(trainer, free_bytes), sample(0, free_bytes)});
  };
  CHECK_FALSE(add(640 * kMiB, 9000 * kMiB));
  account.others_were_at_work();
  CHECK_FALSE(add(640 * kMiB, 8700 * kMiB));
  CHECK_FALSE(add(0, 9340 * kMiB));
  const auto leak = add(0, 9276 * kMiB);
  REQUIRE(leak);
  CHECK(leak->bytes == static_cast<int64_t>(64 * kMiB));
  CHECK(account.report().leaked_bytes == static_cast<int64_t>(64 * kMiB));

  MemoryAccount host(BackendKind::kHost, gpu.peers, gpu.devices);
  CHECK_FALSE(host.add({sample(0, 1000 * kMiB), sample(0, 1000 * kMiB)}));
  host.others_were_at_work();
  CHECK(host.add({sample(0, 999 * kMiB), sample(0, 1000 * kMiB)}));  // whose pages are its own
}

TEST_CASE("the peak of a cycle is at the train step, the transfer or the rollout") {
  // In the steps in which devices give memory: trainer's weights and optimizer, inference's weights
  // and KV cache, staging.
  const auto steps = [](std::array<uint64_t, 5> of) {
    for (auto& bytes : of) bytes *= kPhysicalStepBytes;
    return DeviceNeeds{of[0], of[1], of[2], of[3], of[4]};
  };
  const DeviceNeeds adam = steps({8, 48, 8, 20, 1});
  const auto peak = [](const DeviceNeeds& needs, std::optional<uint64_t> budget = {}) {
    if (budget) *budget *= kPhysicalStepBytes;
    return peak_of_cycle(needs, true, budget);
  };
  const auto peak_steps = [&](const DeviceNeeds& needs, std::optional<uint64_t> budget = {}) {
    return static_cast<double>(peak(needs, budget).bytes) / kPhysicalStepBytes;
  };
  CHECK(peak_steps(adam) == 57);
  CHECK(peak(adam).moment == "the train step");
  CHECK(peak(steps({8, 0, 9, 2, 1})).moment == "the transfer");
  CHECK(peak_steps(steps({8, 0, 9, 70, 1})) == 80);
  CHECK(peak(steps({8, 0, 9, 70, 1})).moment == "the rollout");
  CHECK(peak_of_cycle(adam, false).bytes == 85 * kPhysicalStepBytes);
  // With room inference's weights come while the optimizer's state still goes.
  CHECK(peak_steps(adam, 60) == 60);
  CHECK(peak(adam, 60).moment == "the transfer");
  CHECK(peak_steps(adam, 70) == 70);
  CHECK(peak(adam, 70).moment == "the train step");
  // The trainer comes back before inference has given anything.
  CHECK(peak_steps(adam, 100) == 85);
  CHECK(peak_steps(adam, 10) == 57);
  CHECK(peak_steps(steps({8, 0, 9, 70, 1}), 200) == 88);
  CHECK_THROWS_AS((void)peak_of_cycle({1ULL << 63, 1ULL << 63, 0, 0, 0}, true), Error);
}

TEST_CASE("devices hold whole steps, host memory and links the bytes alone") {
  const DeviceNeeds needs{kPhysicalStepBytes + 1, 48, 8, 0, 0};
  CHECK(peak_of_cycle(needs, true).bytes == 3 * kPhysicalStepBytes);
  CHECK(peak_of_cycle(needs, false).bytes == 4 * kPhysicalStepBytes);
  CHECK(host_bytes_of_cycle(needs, true) == kPhysicalStepBytes + 49);
  CHECK(host_bytes_of_cycle(needs, false) == 0);
  for (const auto& phase : phases_of_cycle(needs, true)) {
    if (phase.tag != "optimizer") continue;
    CHECK(phase.link_bytes == 48);
  }
}

}  // namespace
}  // namespace awex
