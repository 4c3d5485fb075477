#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"

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

/// Lets a call of mmap in our code fail: the next one if 1, the one after it if 2.
int failing_mmap = 0;

class CountingMonitor final : public WaitMonitor {
 public:
  void poll() override { ++polls; }
  int polls = 0;
};

}  // namespace

// The linker's --wrap sends our code's calls of mmap here.
extern "C" void* __real_mmap(void*, size_t, int, int, int, off_t);
extern "C" void* __wrap_mmap(void* address, size_t bytes, int protection, int kind, int fd,
                             off_t offset) {
  if (failing_mmap == 0 || --failing_mmap > 0) {
    return __real_mmap(address, bytes, protection, kind, fd, offset);
  }
  errno = ENOMEM;
  return MAP_FAILED;
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
  CHECK(data[0] != std::byte{1});
  CHECK(data[kChunk] == std::byte{2});
}

TEST_CASE("no page of fresh memory is zero, so that nobody counts on it") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", kChunk + 2 * kMiB);
  take_all(*range);
  uint64_t zero_pages = 0;
  for (uint64_t at = 0; at < kChunk + 2 * kMiB; at += 4096) {
    zero_pages += range->data()[at] == std::byte{0} ? 1 : 0;
  }
  CHECK(zero_pages == 0);
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

TEST_CASE("a take or release whose mapping fails leaves everything as it was") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 3 * kChunk);
  range->take_chunks(0, 1);
  range->data()[0] = std::byte{1};
  failing_mmap = 2;
  CHECK_THROWS_WITH_AS(range->take_chunks(1, 2),
                       "cannot map chunk 3 of 3 of \"weights\" (67.1 MB): mmap: Cannot allocate "
                       "memory (12)",
                       Error);
  CHECK(range->held_bytes() == kChunk);
  CHECK(really_held(*device) == kChunk);
  CHECK(signal_of([&] { read_byte(range->data() + kChunk); }) == SIGSEGV);
  range->take_chunks(1, 2);
  range->data()[kChunk] = std::byte{2};
  failing_mmap = 1;
  CHECK_THROWS_WITH_AS(range->release_chunks(0, 2),
                       "cannot unmap chunks 1 to 2 of 3 of \"weights\" (134 MB): mmap: Cannot "
                       "allocate memory (12)",
                       Error);
  CHECK(really_held(*device) == 3 * kChunk);
  CHECK(range->data()[0] == std::byte{1});
  CHECK(range->data()[kChunk] == std::byte{2});
  range->release_chunks(0, 3);
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

  const auto import = device->reserve_mapping("weights", range->bytes(), range->chunk_bytes());
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
    const auto import = device->reserve_mapping("weights", 2 * kChunk, kChunk);
    import->map(duplicates(fds));
    const bool right = import->data()[0] == named(0) && import->data()[kChunk] == named(kChunk);
    ::_exit(right ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("what an exporter releases stays whole, and taken, while somebody maps it") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  const auto import = device->reserve_mapping("weights", range->bytes(), range->chunk_bytes());
  for (int round = 0; round < 2; ++round) {
    take_all(*range);
    range->data()[0] = named(0);
    range->data()[kChunk] = named(kChunk);
    import->map(duplicates(range->export_fds()));
    CHECK(really_held(*device) == 2 * kChunk);
    range->release_chunks(0, 1);
    CHECK(really_held(*device) == 2 * kChunk);
    range->release_chunks(1, 1);
    CHECK(range->held_bytes() == 0);
    CHECK(really_held(*device) == 2 * kChunk);
    CHECK(import->data()[0] == named(0));
    CHECK(import->data()[kChunk] == named(kChunk));
    import->unmap();
    CHECK(really_held(*device) == 0);
  }
}

TEST_CASE("what an exporter takes anew is other memory than what an importer has mapped") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", 2 * kChunk);
  take_all(*range);
  range->data()[7] = std::byte{1};
  const auto import = device->reserve_mapping("weights", range->bytes(), range->chunk_bytes());
  import->map(duplicates(range->export_fds()));
  range->release_chunks(0, 1);
  range->take_chunks(0, 1);
  range->data()[7] = std::byte{2};
  CHECK(import->data()[7] == std::byte{1});
  CHECK(really_held(*device) == 3 * kChunk);
  import->unmap();
  CHECK(really_held(*device) == 2 * kChunk);
}

TEST_CASE("the memory of a range that is gone is its importer's, in whatever process, once") {
  const auto device = make_host_device(0, 1);
  auto range = device->reserve("weights", kChunk);
  take_all(*range);
  range->data()[0] = named(0);
  std::array<int, 2> to_parent{};
  std::array<int, 2> to_child{};
  REQUIRE(::pipe(to_parent.data()) == 0);
  REQUIRE(::pipe(to_child.data()) == 0);
  const pid_t child = ::fork();
  const auto told = [](int fd) {
    uint64_t value = 0;
    return ::read(fd, &value, sizeof(value)) == sizeof(value) ? value : ~uint64_t{0};
  };
  const auto tell = [](int fd, uint64_t value) {
    return ::write(fd, &value, sizeof(value)) == sizeof(value);
  };
  const auto importer = make_host_device(0, 1);
  const auto import = importer->reserve_mapping("weights", kChunk, kChunk);
  import->map(duplicates(range->export_fds()));
  if (child == 0) {
    // Of the child's copy of the owner only the mapping is let go: the parent owns the memory.
    ::munmap(range->data(), kChunk);
    for (const int fd : range->export_fds()) ::close(fd);
    bool done = tell(to_parent[1], really_held(*importer));
    while (told(to_child[0]) == 1) done = tell(to_parent[1], really_held(*importer));
    ::_exit(done && import->data()[0] == named(0) ? 0 : 1);
  }
  CHECK(told(to_parent[0]) == 0);
  CHECK(really_held(*device) == kChunk);
  range.reset();
  CHECK(really_held(*device) == 0);
  CHECK(really_held(*importer) == kChunk);
  CHECK(tell(to_child[1], 1));
  CHECK(told(to_parent[0]) == 0);
  import->unmap();
  CHECK(really_held(*importer) == 0);
  CHECK(tell(to_child[1], 1));
  CHECK(told(to_parent[0]) == kChunk);
  CHECK(tell(to_child[1], 0));
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  for (const int fd : {to_parent[0], to_parent[1], to_child[0], to_child[1]}) ::close(fd);
}

TEST_CASE("nothing is mapped over a mapping, and the error names it") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("weights", kChunk);
  const auto other = device->reserve("weights", kChunk);
  take_all(*range);
  take_all(*other);
  range->data()[0] = std::byte{1};
  const auto import = device->reserve_mapping("trainer weights", kChunk, kChunk);
  import->map(duplicates(range->export_fds()));
  CHECK_THROWS_WITH_AS(
      import->map(duplicates(other->export_fds())),
      "cannot map \"trainer weights\": it is mapped already, and nothing maps over a mapping",
      Error);
  CHECK(import->data()[0] == std::byte{1});
  import->unmap();
  CHECK_NOTHROW(import->map(duplicates(other->export_fds())));
}

TEST_CASE("an import that is reserved for writing writes the exporter's memory") {
  const auto device = make_host_device(0, 1);
  const auto range = device->reserve("staging", kChunk);
  take_all(*range);
  const auto import = device->reserve_mapping("staging", kChunk, kChunk, MappedAccess::kReadWrite);
  import->map(duplicates(range->export_fds()));
  import->data()[5] = named(5);
  CHECK(range->data()[5] == named(5));
}

TEST_CASE("descriptors that do not fit are refused and leave nothing mapped") {
  const auto device = make_host_device(0, 1);
  const auto small = device->reserve("weights", kChunk);
  take_all(*small);
  const auto import = device->reserve_mapping("weights", 2 * kChunk - kMiB, kChunk);
  CHECK_THROWS_WITH_AS(import->map(duplicates(small->export_fds())),
                       "cannot map \"weights\": got 1 descriptors for 2 chunks", Error);

  const auto last = device->reserve("weights", kChunk - 3 * kMiB);
  take_all(*last);
  for (const auto* wrong : {last.get(), static_cast<DeviceRange*>(nullptr)}) {
    auto fds = duplicates(small->export_fds());
    fds.emplace_back(wrong != nullptr ? ::fcntl(last->export_fds().front(), F_DUPFD_CLOEXEC, 0)
                                      : ::open("/dev/null", O_RDONLY | O_CLOEXEC));
    try {
      import->map(std::move(fds));
      FAIL_CHECK("nothing was thrown");
    } catch (const Error& error) {
      CHECK(std::string(error.what()) ==
            fmt::format("cannot import chunk 2 of 2 of \"weights\" (67.1 MB): the descriptor is of "
                        "{} bytes",
                        wrong != nullptr ? kChunk - 2 * kMiB : 0));
    }
    CHECK(signal_of([&] { read_byte(import->data()); }) == SIGSEGV);
  }
}

TEST_CASE("chunks that no GPU has are refused") {
  const auto device = make_host_device(0, 1);
  CHECK_THROWS_AS(static_cast<void>(device->reserve("weights", 0)), Error);
  CHECK_THROWS_AS(static_cast<void>(device->reserve_mapping("weights", kChunk, 0)), Error);
  CHECK_THROWS_AS(static_cast<void>(device->reserve_mapping("weights", kChunk, kMiB)), Error);
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
    for (const auto sharing : {HostSharing::kPrivate, HostSharing::kShared}) {
      const auto block = device->allocate_host(bytes, sharing);
      const auto memory = block->bytes();
      REQUIRE(memory.size() == bytes);
      CHECK((block->fd() >= 0) == (sharing == HostSharing::kShared));
      CHECK(reinterpret_cast<uintptr_t>(memory.data()) % (2 * kMiB) == 0);
      CHECK(
          std::all_of(memory.begin(), memory.end(), [](std::byte b) { return b == std::byte{0}; }));
      for (uint64_t i = 0; i < bytes; ++i) memory[i] = named(i);
      bool right = true;
      for (uint64_t i = 0; i < bytes; ++i) right = right && memory[i] == named(i);
      CHECK(right);
      std::byte last{};
      const auto place = static_cast<off_t>(bytes - 1);
      if (block->fd() < 0) continue;
      CHECK(::pread(block->fd(), &last, 1, place) == 1);  // by whoever has the descriptor
      CHECK(last == named(bytes - 1));
    }
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

TEST_CASE("events grow by one, and a wait asks the monitor") {
  const auto device = make_host_device(0, 1);
  const auto queue = device->make_queue();
  const QueueEvent first = queue->record();
  CHECK(queue->record() == first + 1);
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
