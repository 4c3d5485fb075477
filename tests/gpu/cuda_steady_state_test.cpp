// What a version takes from the driver and the system, once the first has been: on a GPU nothing
// but the chunks that come and go, and the mapping of the trainer's.
#include <doctest/doctest.h>

#include "gpu/gpu_bench.hpp"
#include "support/call_ledger.hpp"
#include "support/mpi_job.hpp"

namespace awex::test {
namespace {

using Calls = std::map<std::string, CallCounts>;

constexpr uint64_t kMiB = 1 << 20;

/// A second call where the driver cannot map device memory read-only.
uint64_t set_access_of_import(const CountedUpdate& update) {
  const auto calls = update.versions[1].by_phase.at("map all weights");
  const auto found = calls.find("cuMemSetAccess");
  return found != calls.end() && found->second == 2 ? 2 : 1;
}

/// The calls that a cycle consists of, by phase. What does not flow over a link comes and goes with
/// all its chunks at once.
Calls expected(const CountedUpdate& update) {
  const CallCounts taken{{"cuMemCreate", 1}, {"cuMemMap", 1}, {"cuMemSetAccess", 1}};
  const CallCounts released{{"cuMemUnmap", 1}, {"cuMemRelease", 1}};
  const auto all_taken = [](uint64_t chunks) {
    return CallCounts{{"cuMemCreate", chunks}, {"cuMemMap", chunks}, {"cuMemSetAccess", 1}};
  };
  const auto all_released = [](uint64_t chunks) {
    return CallCounts{{"cuMemUnmap", 1}, {"cuMemRelease", chunks}};
  };
  const auto& [weights, optimizer, kv_cache, mapped] = update.chunks;
  if (update.is_trainer) {
    return {{"offload trainer weights", times(weights, released)},
            {"offload trainer optimizer", times(optimizer, released)},
            {"resume trainer weights", times(weights, taken)},
            {"resume trainer optimizer", times(optimizer, taken)},
            {"map all weights", {{"cuMemExportToShareableHandle", weights}}}};
  }
  return {{"resume inference weights", all_taken(weights)},
          {"discard inference weights", all_released(weights)},
          {"resume inference kv_cache", all_taken(kv_cache)},
          {"discard inference kv_cache", all_released(kv_cache)},
          {"unmap inference weights", {{"cuMemUnmap", 1}}},
          {"map all weights",
           {{"pidfd_open", 1},
            {"pidfd_getfd", mapped},
            {"cuMemImportFromShareableHandle", mapped},
            {"cuMemMap", mapped},
            {"cuMemSetAccess", set_access_of_import(update)},
            {"cuMemRelease", mapped}}}};
}

/// Where descriptors cannot be taken by pidfd_getfd they come through a socket.
bool uses_sockets(const CountedUpdate& update) {
  for (const auto& version : update.versions) {
    for (const auto& [phase, calls] : version.by_phase) {
      if (calls.contains("socket")) return true;
    }
  }
  return false;
}

void check_steady_state(const CountedUpdate& update, const Calls& wanted) {
  REQUIRE(update.versions.size() == kCountedVersions);
  CHECK_MESSAGE(!uses_sockets(update), "pidfd_getfd is refused here");
  const auto& second = update.versions[1];
  for (uint64_t version = 2; version <= kCountedVersions; ++version) {
    const auto& by_phase = update.versions[version - 1].by_phase;
    CAPTURE(version);
    CHECK_MESSAGE(by_phase == second.by_phase, "called: ", describe(by_phase),
                  "in version 2: ", describe(second.by_phase));
    CHECK(update.versions[version - 1].open_descriptors == second.open_descriptors);
    CHECK_MESSAGE(by_phase == wanted, "called: ", describe(by_phase),
                  "instead of: ", describe(wanted));
  }
}

}  // namespace

TEST_CASE("the counters see what our code calls") {
  const auto before = calls_so_far();
  {
    const GpuBench bench;
    const auto queue = bench.device->make_queue();
    (void)queue->record();
    const auto block = bench.device->allocate_host(kMiB);
    const auto range = bench.device->reserve("a test", kMiB);
    range->take_chunks(0, 1);
    const GpuBuffer buffer(*bench.device, std::vector<std::byte>(kMiB));
    (void)bench.kernels->prepare_digests({}, 1);
  }
  const auto calls = calls_between(before, calls_so_far());
  for (const char* function :
       {"cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaHostRegister",
        "cudaHostUnregister", "cudaStreamCreateWithPriority", "cudaStreamDestroy",
        "cudaEventCreateWithFlags", "cudaEventDestroy", "cuMemAddressReserve", "cuMemAddressFree",
        "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease", "std::thread",
        "mmap"}) {
    CAPTURE(function);
    CHECK_MESSAGE(calls.contains(function), "called: ", describe({{"", calls}}));
  }
}

TEST_CASE("a version takes nothing but its chunks from the driver") {
  const auto update = count_update(counted_options(BackendKind::kCuda, "preset:tiny-moe", 2));
  check_steady_state(update, expected(update));
}

TEST_CASE("the same with weights of several chunks") {
  const auto update = count_update(counted_options(BackendKind::kCuda, "preset:qwen3-0.6b", 1));
  CHECK(update.chunks.weights > 1);
  check_steady_state(update, expected(update));
}

TEST_CASE("without offloading a version takes nothing at all") {
  auto options = counted_options(BackendKind::kCuda, "preset:tiny-moe", 2);
  options.job.offload = false;
  check_steady_state(count_update(options), {});
}

}  // namespace awex::test
