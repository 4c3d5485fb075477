#include <doctest/doctest.h>

#include <fcntl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "gpu/gpu_bench.hpp"
#include "memory/gpu_facts.hpp"
#include "memory/link_limits.hpp"
#include "memory/region.hpp"

using namespace awex;
using awex::test::named_bytes;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;

struct DeviceBench {
  std::unique_ptr<Device> device = make_cuda_device(0, 4);
  std::unique_ptr<CopyQueue> queue = device->make_queue();
  NoMonitor monitor;

  /// The first copies take what the driver keeps for itself, so that later differences in free
  /// memory are the tests' own.
  DeviceBench() {
    const auto range = device->reserve("warm-up", kMiB);
    range->take_chunks(0, 1);
    write(range->data(), named_bytes(kMiB));
    (void)read(range->data(), kMiB);
    queue->fill_zero(range->data(), kMiB);
    finish();
  }

  void finish() { queue->finish("the test's copies", Deadline(Seconds(60)), monitor); }
  [[nodiscard]] uint64_t free_bytes() const { return device->memory().free_bytes; }

  /// Fills or reads device memory through a pinned block.
  void write(std::byte* device_data, const std::vector<std::byte>& bytes) {
    const auto block = device->allocate_host(bytes.size());
    std::copy(bytes.begin(), bytes.end(), block->bytes().begin());
    queue->copy(device_data, block->bytes().data(), bytes.size());
    finish();
  }
  [[nodiscard]] std::vector<std::byte> read(const std::byte* device_data, uint64_t bytes) {
    const auto block = device->allocate_host(bytes);
    queue->copy(block->bytes().data(), device_data, bytes);
    finish();
    return {block->bytes().begin(), block->bytes().end()};
  }
};

/// Whether the driver counts `bytes` as taken between two readings of free memory, up to what it
/// takes for page tables: less than any of the tests' chunks.
bool is_taken(uint64_t free_before, uint64_t free_after, uint64_t bytes) {
  constexpr uint64_t kPageTables = 4 * kMiB;
  const uint64_t expected = free_before - bytes;
  return std::max(free_after, expected) - std::min(free_after, expected) <= kPageTables;
}

void take_all(DeviceRange& range) { range.take_chunks(0, range.chunks()); }

void release_all(DeviceRange& range) { range.release_chunks(0, range.chunks()); }

/// Descriptors of this process's own range, as a peer would have fetched them.
std::vector<UniqueFd> duplicate_fds(DeviceRange& range) {
  std::vector<UniqueFd> fds;
  for (const int fd : range.export_fds()) fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return fds;
}

}  // namespace

TEST_CASE("a device says what it is") {
  DeviceBench bench;
  const auto& identity = bench.device->identity();
  CHECK(bench.device->kind() == BackendKind::kCuda);
  CHECK_FALSE(identity.name.empty());
  CHECK(identity.uuid != std::array<uint8_t, 16>{});
  CHECK(bench.device->memory().total_bytes > bench.free_bytes());
  CHECK(built_with_cuda());
}

TEST_CASE("a device that is not there is a wrong request") {
  try {
    (void)make_cuda_device(cuda_device_count(), 1);
    FAIL("opened a device that is not there");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK_FALSE(error.hint().empty());
  }
}

TEST_CASE("chunks take and give back physical memory, at addresses that stay") {
  DeviceBench bench;
  const uint64_t bytes = 3 * 64 * kMiB + 5 * kMiB + 1;  // chunks of 50 MiB, the last one of 48
  const auto range = bench.device->reserve("weights", bytes);
  const auto* const data = range->data();
  REQUIRE(range->chunks() == 4);
  const uint64_t before = bench.free_bytes();
  for (int cycle = 0; cycle < 3; ++cycle) {
    take_all(*range);
    CHECK(range->held_bytes() == 198 * kMiB);
    CHECK(is_taken(before, bench.free_bytes(), range->held_bytes()));
    bench.write(range->data(), named_bytes(bytes, static_cast<uint64_t>(cycle)));
    CHECK((bench.read(range->data(), bytes) == named_bytes(bytes, static_cast<uint64_t>(cycle))));
    range->release_chunks(1, 2);
    CHECK(is_taken(before, bench.free_bytes(), 198 * kMiB - 2 * range->chunk_bytes()));
    range->take_chunks(1, 2);
    release_all(*range);
    CHECK(range->held_bytes() == 0);
    CHECK(is_taken(before, bench.free_bytes(), 0));
    CHECK(range->data() == data);
  }
}

TEST_CASE("taking what is taken and exporting what is not backed are errors") {
  DeviceBench bench;
  const auto range = bench.device->reserve("weights", 2 * kMiB);
  CHECK_THROWS_AS(range->release_chunks(0, 1), Error);
  CHECK_THROWS_AS((void)range->export_fds(), Error);
  range->take_chunks(0, 1);
  CHECK_THROWS_AS(range->take_chunks(0, 1), Error);
  CHECK_THROWS_AS(range->take_chunks(1, 1), Error);
}

TEST_CASE("a lack of memory is told with names and bytes, and leaves what was there") {
  DeviceBench bench;
  const uint64_t before = bench.free_bytes();
  {
    const auto range = bench.device->reserve("kv_cache", bench.device->memory().total_bytes);
    range->take_chunks(0, 1);
    std::string message;
    try {
      range->take_chunks(1, range->chunks() - 1);
    } catch (const Error& error) {
      message = error.what();
      CHECK(error.code() == ExitCode::kRuntime);
      CHECK_FALSE(error.hint().empty());
    }
    CAPTURE(message);
    CHECK(message.find("\"kv_cache\"") != std::string::npos);
    CHECK(message.find("CUDA_ERROR_OUT_OF_MEMORY (2)") != std::string::npos);
    CHECK(is_taken(before, bench.free_bytes(), range->chunk_bytes()));
    bench.queue->fill_zero(range->data(), range->chunk_bytes());
    bench.finish();
  }
  CHECK(is_taken(before, bench.free_bytes(), 0));
}

TEST_CASE("an import shows the exporter's bytes at one address, map after map") {
  DeviceBench bench;
  const uint64_t bytes = 64 * kMiB + 3 * kMiB;
  const auto range = bench.device->reserve("weights", bytes);
  const auto import = bench.device->reserve_mapping("weights", bytes, range->chunk_bytes());
  const auto* const data = import->data();
  const uint64_t before = bench.free_bytes();
  for (uint64_t cycle = 0; cycle < 3; ++cycle) {
    take_all(*range);
    import->map(duplicate_fds(*range));
    CHECK_THROWS_AS(import->map(duplicate_fds(*range)), Error);
    bench.write(range->data(), named_bytes(bytes, cycle));
    CHECK((bench.read(import->data(), bytes) == named_bytes(bytes, cycle)));
    release_all(*range);
    // What is mapped stays whole, and stays taken, until the importer lets it go.
    CHECK((bench.read(import->data(), bytes) == named_bytes(bytes, cycle)));
    CHECK(is_taken(before, bench.free_bytes(), 68 * kMiB));
    import->unmap();
    import->unmap();
    CHECK(import->data() == data);
    CHECK(is_taken(before, bench.free_bytes(), 0));
  }
  CHECK_THROWS_AS(import->map({}), Error);
}

TEST_CASE("an owner without addresses is mapped chunk by chunk, by descriptors and without") {
  DeviceBench bench;
  constexpr uint64_t kChunk = 64 * kMiB;
  const uint64_t before = bench.free_bytes();
  const auto owned = bench.device->make_chunks("weights", 3 * kChunk);
  REQUIRE(owned->chunking().chunk_bytes == kChunk);
  owned->take(0, 3);
  CHECK(is_taken(before, bench.free_bytes(), 3 * kChunk));
  const auto mapped =
      bench.device->reserve_mapping("weights", 3 * kChunk, kChunk, MappedAccess::kReadWrite);
  std::vector<UniqueFd> fds;
  fds.emplace_back(::fcntl(owned->export_fds().at(1), F_DUPFD_CLOEXEC, 0));
  mapped->map(1, std::move(fds));
  mapped->map(*owned, 0, 1);
  const auto content = named_bytes(2 * kChunk);
  bench.write(mapped->data(), content);
  CHECK((bench.read(mapped->data(), 2 * kChunk) == content));
  CHECK_THROWS_AS(mapped->map(*owned, 1, 2), Error);
  mapped->unmap(0, 1);
  owned->release(0, 3);
  CHECK(is_taken(before, bench.free_bytes(), kChunk));
  CHECK((bench.read(mapped->data() + kChunk, kChunk) ==
         std::vector<std::byte>(content.begin() + static_cast<std::ptrdiff_t>(kChunk),
                                content.end())));
  mapped->unmap();
  CHECK(is_taken(before, bench.free_bytes(), 0));
}

TEST_CASE("a descriptor that is no GPU memory is refused, and nothing stays mapped") {
  DeviceBench bench;
  const auto import = bench.device->reserve_mapping("weights", kMiB, 64 * kMiB);
  std::vector<UniqueFd> fds;
  fds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK_THROWS_AS(import->map(std::move(fds)), Error);
  const auto range = bench.device->reserve("weights", kMiB);
  take_all(*range);
  import->map(duplicate_fds(*range));
  import->unmap();
}

TEST_CASE("a region's bytes survive offload and resume, and its memory is given back between") {
  DeviceBench bench;
  const uint64_t bytes = 3 * 64 * kMiB + 12'345;
  Region region(*bench.device, "trainer optimizer", Tag::kOptimizer, bytes);
  const uint64_t before = bench.free_bytes();
  const Deadline deadline(Seconds(60));
  region.take(deadline, bench.monitor);
  const auto content = named_bytes(bytes);
  bench.write(region.data(), content);
  for (int cycle = 0; cycle < 2; ++cycle) {
    CHECK(region.offload(*bench.queue, deadline, bench.monitor).moved_bytes == bytes);
    CHECK(region.held_bytes() == 0);
    CHECK(is_taken(before, bench.free_bytes(), 0));
    CHECK(region.resume(*bench.queue, deadline, bench.monitor).moved_bytes == bytes);
    CHECK((bench.read(region.data(), bytes) == content));
  }
}

TEST_CASE("events end in order and a wait past its deadline names what it waited for") {
  DeviceBench bench;
  const uint64_t bytes = 256 * kMiB;
  const auto range = bench.device->reserve("weights", bytes);
  take_all(*range);
  const auto block = bench.device->allocate_host(bytes);
  const auto copy = [&] { bench.queue->copy(block->bytes().data(), range->data(), bytes); };
  std::vector<QueueEvent> events;
  for (int i = 0; i < 5; ++i) {
    copy();
    events.push_back(bench.queue->record());
  }
  for (size_t i = 1; i < events.size(); ++i) CHECK(events[i] == events[i - 1] + 1);
  std::string message;
  try {
    bench.queue->wait(events.back(), "offloading weights", Deadline(Seconds(1e-6)), bench.monitor);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
    message = error.what();
  }
  CHECK(message.find("offloading weights") != std::string::npos);
  bench.queue->wait(events[2], "copies", Deadline(Seconds(60)), bench.monitor);
  bench.queue->wait(events[0], "copies", Deadline(Seconds(60)), bench.monitor);
  CHECK_THROWS_AS(
      bench.queue->wait(events.back() + 1, "copies", Deadline(Seconds(60)), bench.monitor), Error);
  bench.finish();
}

TEST_CASE("the links' limits are those of a GPU") {
  DeviceBench bench;
  const uint64_t before = bench.free_bytes();
  const auto limits = measure_link_limits(*bench.device, Deadline(Seconds(60)), bench.monitor,
                                          link_probe_bytes(BackendKind::kCuda));
  CHECK(limits.device_to_host > 1e9);
  CHECK(limits.host_to_device > 1e9);
  CHECK(limits.device_to_device > limits.device_to_host);
  CHECK(is_taken(before, bench.free_bytes(), 0));
}
