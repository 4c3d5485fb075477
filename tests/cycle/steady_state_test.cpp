// What a version takes from the system, once the first has been: with the host backend, nothing but
// the chunks that come and go, and the mapping of the trainer's.
#include <doctest/doctest.h>

#include "base/thread_pool.hpp"
#include "support/call_ledger.hpp"
#include "support/mpi_job.hpp"
#include "transfer/share/fd_transport.hpp"

namespace awex::test {
namespace {

using Calls = std::map<std::string, CallCounts>;

constexpr uint64_t kMiB = 1 << 20;

Request options_for(const std::string& model, bool optimizer) {
  auto options = counted_options(BackendKind::kHost, model, 2);
  options.job.trainer = fmt::format("megatron:tp={}", job().size() / 2);
  options.job.optimizer = optimizer;
  options.job.gpu_memory = 2ULL << 30;  // room for both roles, so that nobody waits for it
  return options;
}

/// The calls that a cycle consists of, by phase.
Calls expected(const CountedUpdate& update) {
  const CallCounts taken{{"memfd_create", 1}, {"ftruncate", 1}, {"fallocate", 1}, {"mmap", 1}};
  const CallCounts released{{"mmap", 1}};
  const auto& chunks_of = update.chunks;
  Calls calls;
  if (update.is_trainer) {
    for (const auto& [tag, chunks] :
         {std::pair{"weights", chunks_of.weights}, std::pair{"optimizer", chunks_of.optimizer}}) {
      if (chunks == 0) continue;
      calls[fmt::format("offload trainer {}", tag)] = times(chunks, released);
      calls[fmt::format("resume trainer {}", tag)] = times(chunks, taken);
    }
    return calls;
  }
  // What does not flow over a link goes with all its chunks at once.
  for (const auto& [tag, chunks] :
       {std::pair{"weights", chunks_of.weights}, std::pair{"kv_cache", chunks_of.kv_cache}}) {
    calls[fmt::format("resume inference {}", tag)] = times(chunks, taken);
    calls[fmt::format("discard inference {}", tag)] = released;
  }
  calls["unmap inference weights"] = {{"mmap", 1}};
  calls["map all weights"] = {
      {"pidfd_open", 1}, {"pidfd_getfd", chunks_of.mapped}, {"mmap", chunks_of.mapped}};
  return calls;
}

void check_steady_state(const CountedUpdate& update, const Calls& wanted) {
  REQUIRE(update.versions.size() == kCountedVersions);
  for (uint64_t version = 2; version <= kCountedVersions; ++version) {
    const auto& [by_phase, descriptors] = update.versions[version - 1];
    CAPTURE(version);
    CHECK_MESSAGE(by_phase == wanted, "called: ", describe(by_phase),
                  "instead of: ", describe(wanted));
    CHECK(descriptors == update.versions.front().open_descriptors);
  }
}

}  // namespace

TEST_CASE("the counters see what our code calls") {
  const auto before = calls_so_far();
  const FdSocket socket;
  const ThreadPool threads(3);
  const auto device = make_host_device(0, 1);
  const auto block = device->allocate_host(kMiB);
  const auto range = device->reserve("a test", kMiB);
  const auto calls = calls_between(before, calls_so_far());
  const CallCounts wanted{
      {"socket", 1}, {"std::thread", 2}, {"a file stream's open", 1}, {"mmap", 2}, {"madvise", 1}};
  CHECK_MESSAGE(calls == wanted, "called: ", describe({{"", calls}}));
  CHECK(calls_so_far().at("MPI_Comm_dup") == 2);  // the job's own, and the first epoch's
  CHECK(calls_so_far().at("pidfd_open") >= 1);
}

TEST_CASE("a version takes nothing but its chunks from the system") {
  const auto update = count_update(options_for("preset:tiny-dense", true));
  CHECK(update.chunks.weights == 1);
  CHECK((update.is_trainer ? update.chunks.optimizer : update.chunks.mapped) == 1);
  check_steady_state(update, expected(update));
}

TEST_CASE("the same with weights of several chunks") {
  auto options = options_for("preset:qwen3-0.6b", false);
  options.job.layers = 1;
  const auto update = count_update(options);
  CHECK(update.chunks.weights > 1);
  check_steady_state(update, expected(update));
}

TEST_CASE("without offloading a version takes nothing at all") {
  auto options = options_for("preset:tiny-dense", true);
  options.job.offload = false;
  check_steady_state(count_update(options), {});
}

}  // namespace awex::test
