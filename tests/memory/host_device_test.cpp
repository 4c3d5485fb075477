#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/device.hpp"

using namespace awex;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;
constexpr uint64_t kChunk = 64 * kMiB;

/// A value that names its index, so that a misplaced byte shows where it came from.
std::byte named(uint64_t index) {
  return static_cast<std::byte>((index * 0x9e3779b97f4a7c15U) >> 56);
}

uint64_t really_held(const Device& device) {
  return device.memory().total_bytes - device.memory().free_bytes;
}

/// The signal that ends a child process which does `act`; 0 when it ends by itself.
template <class Act>
int signal_of(const Act& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);
    ::signal(SIGBUS, SIG_DFL);
    act();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

void read_byte(const std::byte* at) {
  [[maybe_unused]] const volatile std::byte value = *const_cast<const volatile std::byte*>(at);
}

std::vector<UniqueFd> duplicates(const std::vector<int>& fds) {
  std::vector<UniqueFd> result;
  result.reserve(fds.size());
  for (const int fd : fds) result.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return result;
}

void take_all(DeviceRange& range) { range.take_chunks(0, range.chunks()); }

/// Lets the next call of mprotect in our code fail.
bool mprotect_fails = false;

class CountingMonitor final : public WaitMonitor {
 public:
  void poll() override { ++polls; }
  int polls = 0;
};

}  // namespace

// The linker's --wrap sends our code's calls of mprotect here.
extern "C" int __real_mprotect(void*, size_t, int);
extern "C" int __wrap_mprotect(void* address, size_t bytes, int protection) {
  if (!std::exchange(mprotect_fails, false)) return __real_mprotect(address, bytes, protection);
  errno = ENOMEM;
  return -1;
}

TEST_CASE("a range takes and gives back real pages, and the books agree with the kernel") {
  const auto device = make_host_device(0, 1);
  constexpr uint64_t kBytes = 2 * kChunk + 5;
  const auto range = device->reserve("weights", kBytes);
  const uint64_t chunk = range->chunk_bytes();
  CHECK(range->bytes() == kBytes);
  CHECK(chunk == chunk_bytes_for(kBytes));
  REQUIRE(range->chunks() == 3);
  CHECK(range->chunking().used_bytes(1) == chunk);
  CHECK(range->chunking().used_bytes(2) == kBytes - 2 * chunk);
  CHECK(range->held_bytes() == 0);
  CHECK(really_held(*device) == 0);

  const uint64_t last = 42 * kMiB;  // what it uses, in whole steps
  range->take_chunks(2, 1);
  CHECK(range->held_bytes() == last);
  CHECK(really_held(*device) == last);
  range->take_chunks(0, 1);
  CHECK(range->held_bytes() == chunk + last);
  CHECK(really_held(*device) == chunk + last);
  range->release_chunks(2, 1);
  CHECK(range->held_bytes() == chunk);
  CHECK(really_held(*device) == chunk);
  range->take_chunks(1, 2);
  CHECK(range->held_bytes() == held_bytes_for(kBytes));
  CHECK(really_held(*device) == held_bytes_for(kBytes));
  range->data()[kBytes - 1] = std::byte{1};
  range->release_chunks(0, 3);
  CHECK(range->held_bytes() == 0);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("the memory of a destroyed range is free, other ranges keep theirs") {
  const auto device = make_host_device(0, 1);
  auto first = device->reserve("weights", kChunk);
  const auto second = device->reserve("kv_cache", 1);
  first->take_chunks(0, 1);
  second->take_chunks(0, 1);
  CHECK(really_held(*device) == first->held_bytes() + second->held_bytes());
  first.reset();
  CHECK(really_held(*device) == second->held_bytes());
}

TEST_CASE("addresses outlive the memory behind them, and bytes do not") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  std::byte* const data = range->data();
  take_all(*range);
  data[0] = std::byte{1};
  data[kChunk] = std::byte{2};
  range->release_chunks(0, 1);
  CHECK(data[kChunk] == std::byte{2});
  range->take_chunks(0, 1);
  CHECK(range->data() == data);
  CHECK(data[0] == std::byte{0});
  CHECK(data[kChunk] == std::byte{2});
}

TEST_CASE("a use of memory that is not taken is a fault") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  std::byte* const data = range->data();
  CHECK(signal_of([&] { read_byte(data); }) == SIGSEGV);
  take_all(*range);
  CHECK(signal_of([&] { read_byte(data + 2 * kChunk - 1); }) == 0);
  range->release_chunks(1, 1);
  CHECK(signal_of([&] { read_byte(data + kChunk - 1); }) == 0);
  CHECK(signal_of([&] { read_byte(data + kChunk); }) == SIGSEGV);
}

TEST_CASE(
    "taking twice, releasing twice and chunks beyond the end are errors that name the chunk") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", kChunk);
  CHECK_THROWS_WITH_AS(range->release_chunks(0, 1),
                       "chunk 1 of 1 of \"weights\" (67.1 MB) is not taken", Error);
  CHECK_THROWS_AS(static_cast<void>(range->export_fds()), Error);
  range->take_chunks(0, 1);
  CHECK_THROWS_WITH_AS(range->take_chunks(0, 1),
                       "chunk 1 of 1 of \"weights\" (67.1 MB) is not free", Error);
  CHECK_THROWS_AS(range->take_chunks(1, 1), Error);
  CHECK_THROWS_AS(range->take_chunks(0, 2), Error);
  CHECK(range->held_bytes() == kChunk);
}

TEST_CASE("a take or release whose change of access fails leaves everything as it was") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  const auto* const message =
      "cannot change access to chunk 2 of 2 of \"weights\" (67.1 MB): mprotect: Cannot allocate "
      "memory (12)";
  range->take_chunks(0, 1);
  mprotect_fails = true;
  CHECK_THROWS_WITH_AS(range->take_chunks(1, 1), message, Error);
  CHECK(range->held_bytes() == kChunk);
  CHECK(really_held(*device) == kChunk);
  range->take_chunks(1, 1);
  range->data()[kChunk] = std::byte{2};
  mprotect_fails = true;
  CHECK_THROWS_WITH_AS(range->release_chunks(1, 1), message, Error);
  CHECK(really_held(*device) == 2 * kChunk);
  CHECK(range->data()[kChunk] == std::byte{2});
  range->release_chunks(0, 2);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("a range beyond all addresses is an error that names it and its bytes") {
  const auto device = make_host_device(0, 1);
  try {
    static_cast<void>(device->reserve("kv_cache", 1ULL << 60));
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    const std::string message = error.what();
    CAPTURE(message);
    CHECK(message.find("\"kv_cache\"") != std::string::npos);
    CHECK(message.find("1153 PB") != std::string::npos);
    CHECK_FALSE(error.hint().empty());
  }
  CHECK(really_held(*device) == 0);
}

TEST_CASE("an importer sees the exporter's bytes at its own fixed address, and cannot write them") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk + 100);
  const uint64_t chunk = range->chunk_bytes();
  take_all(*range);
  const std::vector<uint64_t> places{0, chunk - 1, chunk, 2 * chunk, 2 * kChunk + 99};
  for (const auto place : places) range->data()[place] = named(place);

  const auto import = device->reserve_import("weights", range->bytes(), range->chunk_bytes());
  const std::byte* const data = import->data();
  CHECK(signal_of([&] { read_byte(data); }) == SIGSEGV);
  for (int round = 0; round < 2; ++round) {
    import->map(duplicates(range->export_fds()));
    CHECK(import->data() == data);
    CHECK(data != range->data());
    for (const auto place : places) CHECK(data[place] == named(place));
    range->data()[7] = named(round);
    CHECK(data[7] == named(round));
    CHECK(signal_of([&] { const_cast<std::byte*>(data)[7] = {}; }) == SIGSEGV);
    import->unmap();
    CHECK(signal_of([&] { read_byte(data); }) == SIGSEGV);
    CHECK_NOTHROW(import->unmap());
  }
}

TEST_CASE("another process sees the exporter's bytes through the descriptors alone") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  take_all(*range);
  range->data()[0] = named(0);
  range->data()[kChunk] = named(kChunk);
  const auto fds = range->export_fds();
  REQUIRE(fds.size() == 2);
  const pid_t child = ::fork();
  if (child == 0) {
    ::munmap(range->data(), 2 * kChunk);  // what is read below comes through the import
    const auto import = device->reserve_import("weights", 2 * kChunk, kChunk);
    import->map(duplicates(fds));
    const bool right = import->data()[0] == named(0) && import->data()[kChunk] == named(kChunk);
    ::_exit(right ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("what an exporter releases is free even while an importer maps it") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  take_all(*range);
  const auto import = device->reserve_import("weights", range->bytes(), range->chunk_bytes());
  import->map(duplicates(range->export_fds()));
  read_byte(import->data());
  range->release_chunks(0, 1);
  range->release_chunks(1, 1);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("descriptors that do not fit are refused and leave nothing mapped") {
  const auto device = make_host_device(0, 1);
  const auto small = device->reserve("weights", kChunk);
  take_all(*small);
  const auto import = device->reserve_import("weights", 2 * kChunk, kChunk);
  CHECK_THROWS_WITH_AS(import->map(duplicates(small->export_fds())),
                       "cannot import \"weights\": got 1 descriptors for 2 chunks", Error);

  auto fds = duplicates(small->export_fds());
  fds.push_back(std::move(duplicates(small->export_fds()).front()));
  CHECK_THROWS_AS(import->map(std::move(fds)), Error);
  CHECK(signal_of([&] { read_byte(import->data()); }) == SIGSEGV);
}

TEST_CASE("a device is the same for all processes of a node, and another for each index") {
  const auto a = make_host_device(0, 1);
  const auto b = make_host_device(0, 1);
  const auto other = make_host_device(1, 1);
  const auto far = make_host_device(0x12345678, 1);
  CHECK(a->identity().uuid == b->identity().uuid);
  CHECK(a->identity().uuid != other->identity().uuid);
  CHECK(far->identity().uuid != other->identity().uuid);
  CHECK(other->identity().index == 1);
  CHECK(a->kind() == BackendKind::kHost);
  CHECK_THROWS_AS(static_cast<void>(make_host_device(-1, 1)), Error);
}

TEST_CASE("host blocks begin on a huge page, are zero and hold what is written") {
  const auto device = make_host_device(0, 2);
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4097}, 2 * kMiB, 5 * kMiB + 3}) {
    CAPTURE(bytes);
    const auto block = device->allocate_host(bytes);
    const auto memory = block->bytes();
    REQUIRE(memory.size() == bytes);
    CHECK(reinterpret_cast<uintptr_t>(memory.data()) % (2 * kMiB) == 0);
    CHECK(std::all_of(memory.begin(), memory.end(), [](std::byte b) { return b == std::byte{0}; }));
    for (uint64_t i = 0; i < bytes; ++i) memory[i] = named(i);
    bool right = true;
    for (uint64_t i = 0; i < bytes; ++i) right = right && memory[i] == named(i);
    CHECK(right);
  }
  CHECK(really_held(*device) == 0);
}

TEST_CASE("a queue copies exactly the bytes it is told to, with any number of threads") {
  constexpr uint64_t kPoisoned = 8;
  for (const size_t threads : {0, 1, 3}) {
    const auto device = make_host_device(0, threads);
    const auto queue = device->make_queue();
    for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, 2 * kMiB, 2 * kMiB + 1, 7 * kMiB - 13}) {
      CAPTURE(threads);
      CAPTURE(bytes);
      std::vector<std::byte> from(bytes + 3);
      for (uint64_t i = 0; i < from.size(); ++i) from[i] = named(i);
      std::vector<std::byte> to(bytes + 2 * kPoisoned, std::byte{0xee});
      queue->copy(to.data() + kPoisoned, from.data() + 3, bytes);
      auto expected = std::vector<std::byte>(bytes + 2 * kPoisoned, std::byte{0xee});
      for (uint64_t i = 0; i < bytes; ++i) expected[kPoisoned + i] = named(i + 3);
      CHECK((to == expected));

      queue->fill_zero(to.data() + kPoisoned, bytes);
      std::fill_n(expected.begin() + kPoisoned, bytes, std::byte{0});
      CHECK((to == expected));
    }
  }
}

TEST_CASE("marks grow by one, and a wait asks the monitor") {
  const auto device = make_host_device(0, 1);
  const auto queue = device->make_queue();
  const Mark first = queue->mark();
  CHECK(queue->mark() == first + 1);
  CountingMonitor monitor;
  queue->wait(first, "a copy", Deadline(Seconds(60)), monitor);
  queue->finish("all copies", Deadline(Seconds(60)), monitor);
  CHECK(monitor.polls == 2);
}

TEST_CASE("a binary without CUDA says so") {
  if (built_with_cuda()) return;
  CHECK(cuda_device_count() == 0);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_cuda_device(3, 1)),
                       "cannot open gpu 3: this binary was built without CUDA", Error);
}
