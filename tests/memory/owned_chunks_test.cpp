// The owner of chunks and those who map them, as two objects that may live in two processes.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/device.hpp"

using namespace awex;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;
constexpr uint64_t kChunk = 64 * kMiB;

std::vector<UniqueFd> duplicates(OwnedChunks& owned, uint64_t first, uint64_t count) {
  const auto fds = owned.export_fds();
  std::vector<UniqueFd> result;
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    result.emplace_back(::fcntl(fds.at(chunk), F_DUPFD_CLOEXEC, 0));
  }
  return result;
}

uint64_t really_held(const Device& device) {
  const auto memory = device.memory();
  return memory.total_bytes - memory.free_bytes;
}

/// How a child process ends that does `act`: its signal, or the negative of its exit code.
template <class Act>
int end_of(const Act& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);
    ::_exit(act() ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

bool faults(const std::byte* at) {
  return end_of([at] {
           [[maybe_unused]] const volatile std::byte value =
               *const_cast<const volatile std::byte*>(at);
           return true;
         }) == SIGSEGV;
}

}  // namespace

TEST_CASE("an owner without addresses has memory that another process maps, writes and survives") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", 2 * kChunk);
  owned->take(0, 2);
  CHECK(owned->held_bytes() == 2 * kChunk);
  CHECK(really_held(*device) == 2 * kChunk);
  auto fds = duplicates(*owned, 0, 2);
  CHECK(end_of([&] {
          const auto mapped =
              device->reserve_mapping("weights", 2 * kChunk, kChunk, MappedAccess::kReadWrite);
          mapped->map(std::move(fds));
          mapped->data()[0] = std::byte{1};
          mapped->data()[2 * kChunk - 1] = std::byte{2};
          return true;  // ends without unmapping, as one that is killed
        }) == 0);
  const auto mapped = device->reserve_mapping("weights", 2 * kChunk, kChunk);
  mapped->map(*owned, 0, 2);
  CHECK(mapped->data()[0] == std::byte{1});
  CHECK(mapped->data()[2 * kChunk - 1] == std::byte{2});
  mapped->unmap();
  fds.clear();
  owned->release(0, 2);
  CHECK(owned->held_bytes() == 0);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("no page is zero of what an owner exports that has never mapped it") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", kChunk + 2 * kMiB);
  owned->take(0, owned->chunking().count());
  const auto mapped =
      device->reserve_mapping("weights", kChunk + 2 * kMiB, owned->chunking().chunk_bytes);
  mapped->map(duplicates(*owned, 0, owned->chunking().count()));
  uint64_t zero_pages = 0;
  for (uint64_t at = 0; at < kChunk + 2 * kMiB; at += 4096) {
    zero_pages += mapped->data()[at] == std::byte{0} ? 1 : 0;
  }
  CHECK(zero_pages == 0);
}

TEST_CASE("bytes stay what they are in whatever order an owner's chunks are mapped and exported") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", kChunk);
  owned->take(0, 1);
  const auto first = device->reserve_mapping("a", kChunk, kChunk, MappedAccess::kReadWrite);
  const auto second = device->reserve_mapping("b", kChunk, kChunk);
  first->map(*owned, 0, 1);
  first->data()[0] = std::byte{7};
  second->map(*owned, 0, 1);
  CHECK(second->data()[0] == std::byte{7});
  CHECK(second->data() != first->data());
  second->unmap(0, 1);
  second->map(duplicates(*owned, 0, 1));
  CHECK(second->data()[0] == std::byte{7});
  first->unmap();
  first->map(*owned, 0, 1);
  CHECK(first->data()[0] == std::byte{7});
  CHECK(really_held(*device) == kChunk);
}

TEST_CASE("chunks are mapped as they come and unmapped as they go, from within and from without") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", 4 * kChunk);
  owned->take(0, 4);
  const auto mapped = device->reserve_mapping("weights", 4 * kChunk, kChunk);
  const std::byte* const data = mapped->data();
  const auto are_mapped = [&](const std::vector<bool>& wanted) {
    for (uint64_t chunk = 0; chunk < 4; ++chunk) {
      CAPTURE(chunk);
      CHECK(mapped->is_mapped(chunk) == wanted[chunk]);
      CHECK(faults(data + chunk * kChunk) == !wanted[chunk]);
    }
  };
  mapped->map(1, duplicates(*owned, 1, 2));
  are_mapped({false, true, true, false});
  mapped->map(*owned, 3, 1);
  are_mapped({false, true, true, true});
  mapped->unmap(1, 1);
  are_mapped({false, false, true, true});
  mapped->map(*owned, 0, 1);
  are_mapped({true, false, true, true});
  mapped->unmap();
  are_mapped({false, false, false, false});
  owned->release(0, 4);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("what is mapped by descriptors outlives its owner's release, chunk by chunk") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", 2 * kChunk);
  owned->take(0, 2);
  const auto mapped =
      device->reserve_mapping("weights", 2 * kChunk, kChunk, MappedAccess::kReadWrite);
  mapped->map(1, duplicates(*owned, 1, 1));
  mapped->data()[kChunk] = std::byte{9};
  owned->release(0, 2);
  CHECK(really_held(*device) == kChunk);
  CHECK(mapped->data()[kChunk] == std::byte{9});
  mapped->unmap(1, 1);
  CHECK(really_held(*device) == 0);
}

TEST_CASE("maps that cannot be are errors that name the range, and change nothing") {
  const auto device = make_host_device(0, 1);
  const auto owned = device->make_chunks("weights", 2 * kChunk);
  const auto mapped = device->reserve_mapping("mapped", 2 * kChunk, kChunk);
  CHECK_THROWS_WITH_AS(mapped->map(*owned, 0, 2),
                       "chunk 1 of 2 of \"weights\" (67.1 MB) is not taken", Error);
  owned->take(0, 2);
  const auto longer = device->reserve_mapping("longer", 3 * kChunk, kChunk);
  CHECK_THROWS_WITH_AS(longer->map(*owned, 0, 2),
                       "cannot map \"weights\" as \"longer\": 134217728 bytes in chunks of "
                       "67108864 are not 201326592 in chunks of 67108864",
                       Error);
  CHECK_THROWS_WITH_AS(mapped->map(1, duplicates(*owned, 0, 2)),
                       "cannot map \"mapped\": got 2 descriptors from chunk 2 of 2 on", Error);
  CHECK_THROWS_WITH_AS(mapped->unmap(0, 1), "chunk 1 of 2 of \"mapped\" (67.1 MB) is not mapped",
                       Error);
  mapped->map(*owned, 1, 1);
  constexpr const char* kOverMapping =
      "cannot map \"mapped\": it is mapped already, and nothing maps over a mapping";
  CHECK_THROWS_WITH_AS(mapped->map(*owned, 0, 2), kOverMapping, Error);
  CHECK_THROWS_WITH_AS(mapped->map(1, duplicates(*owned, 1, 1)), kOverMapping, Error);
  CHECK_FALSE(mapped->is_mapped(0));
  CHECK(mapped->is_mapped(1));

  // The second of two descriptors is none of a chunk: the first one is not left mapped.
  mapped->unmap();
  auto fds = duplicates(*owned, 0, 1);
  fds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK_THROWS_AS(mapped->map(std::move(fds)), Error);
  CHECK(faults(mapped->data()));
  CHECK_FALSE(mapped->is_mapped(0));
}
