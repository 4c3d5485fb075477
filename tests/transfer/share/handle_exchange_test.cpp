#include "transfer/share/handle_exchange.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "support/mpi_job.hpp"

namespace {

using awex::check_handles;
using awex::FdTransport;
using awex::HandleKind;
using awex::HandleRecord;
using awex::Role;
using awex::test::job;

constexpr uint64_t kFingerprint = 0x1234;

/// Records of `pairs` trainers and their inference ranks that fit each other.
std::vector<HandleRecord> good_records(int pairs) {
  std::vector<HandleRecord> records(static_cast<size_t>(2 * pairs));
  for (int rank = 0; rank < 2 * pairs; ++rank) {
    auto& record = records[static_cast<size_t>(rank)];
    const bool trains = rank < pairs;
    record.protocol = awex::kHandleProtocol;
    record.rank = rank;
    record.partner = trains ? rank + pairs : rank - pairs;
    record.role = trains ? Role::kTrainer : Role::kInference;
    record.node.host = {'a'};
    record.device_uuid[0] = static_cast<uint8_t>(rank % pairs);
    record.fingerprint = kFingerprint;
    record.maps = HandleKind::kMemfd;
    if (!trains) continue;
    record.offered.kind = HandleKind::kMemfd;
    record.offered.bytes = 100;
    record.offered.chunk_bytes = 64;
    record.offered.count = 2;
  }
  return records;
}

/// What check_handles says, or nothing.
std::string verdict(const std::vector<HandleRecord>& records) {
  try {
    check_handles(records);
  } catch (const awex::Error& e) {
    CHECK(e.code() == awex::ExitCode::kRequest);
    return e.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int partner_of(int rank) {
  const int pairs = job().size() / 2;
  return rank < pairs ? rank + pairs : rank - pairs;
}

std::byte pattern(int trainer, uint64_t at) {
  return static_cast<std::byte>(static_cast<uint64_t>(trainer) * 101 + at * 7 + at / 4096);
}

// A prime, so that the samples of a range touch every place in a page.
constexpr uint64_t kStride = 997;

/// A trainer's range, samples of it filled with a pattern that names the trainer and the place.
std::unique_ptr<awex::DeviceRange> offer(awex::Device& device, uint64_t bytes) {
  auto range = device.reserve("weights", bytes);
  range->take_chunks(0, range->chunks());
  for (uint64_t at = 0; at < bytes; at += kStride) range->data()[at] = pattern(job().rank(), at);
  return range;
}

uint64_t wrong_bytes(awex::Device& device, awex::ReceivedRange received, int trainer) {
  auto range = device.reserve_mapping("weights", received.bytes, received.chunk_bytes);
  range->map(std::move(received.fds));
  uint64_t wrong = 0;
  for (uint64_t at = 0; at < received.bytes; at += kStride) {
    wrong += range->data()[at] != pattern(trainer, at) ? 1 : 0;
  }
  return wrong;
}

awex::HandlesHere here(const std::unique_ptr<awex::DeviceRange>& offered) {
  return {.owned = offered ? &offered->owned() : nullptr};
}

void check_swap(FdTransport transport) {
  const int me = job().rank();
  const auto& peer = job().peers()[static_cast<size_t>(me)];
  const auto device = awex::make_host_device(peer.device.index, 1);
  constexpr uint64_t kBytes = (65ULL << 20) + 123;  // two chunks, the last in part
  const bool trains = peer.role == Role::kTrainer;
  const auto offered = trains ? offer(*device, kBytes) : nullptr;
  auto received = awex::swap_handles(job(), awex::BackendKind::kHost, here(offered), partner_of(me),
                                     kFingerprint, transport);
  if (trains) {
    CHECK(received.fds.empty());
  } else {
    CHECK(received.bytes == kBytes);
    CHECK(received.fds.size() == 2);
    for (const auto& fd : received.fds) CHECK((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(wrong_bytes(*device, std::move(received), partner_of(me)) == 0);
  }
  job().agree(nullptr);  // the trainer keeps its memory until the importer has read it
}

}  // namespace

TEST_CASE("descriptors come by pidfd") { check_swap(FdTransport::kPidfd); }

TEST_CASE("descriptors come by socket") { check_swap(FdTransport::kSocket); }

TEST_CASE("descriptors come by whatever way the system allows") { check_swap(FdTransport::kAuto); }

TEST_CASE("another fingerprint on one rank stops all of them, with both sides named") {
  const int me = job().rank();
  const int odd = job().size() - 1;
  const auto device = awex::make_host_device(0, 1);
  const bool trains = me < job().size() / 2;
  const auto offered = trains ? offer(*device, 4096) : nullptr;
  std::string what;
  try {
    (void)awex::swap_handles(job(), awex::BackendKind::kHost, here(offered), partner_of(me),
                             me == odd ? kFingerprint + 1 : kFingerprint);
  } catch (const awex::Error& e) {
    CHECK(e.code() == awex::ExitCode::kRequest);
    what = e.what();
  }
  CHECK(job().failure_is_agreed());
  CHECK(contains(what, "rank 0 ("));
  CHECK(contains(what, fmt::format("rank {} (", odd)));
  CHECK(contains(what, "0x0000000000001234"));
  CHECK(contains(what, "0x0000000000001235"));
}

TEST_CASE("records that fit") {
  CHECK(verdict(good_records(1)).empty());
  CHECK(verdict(good_records(3)).empty());
}

TEST_CASE("another protocol is named before anything else") {
  auto records = good_records(2);
  records[2].protocol = 9;
  records[2].fingerprint = 0;
  CHECK(contains(verdict(records), "rank 2 (inference, host a) speaks 9"));
}

TEST_CASE("partners must share host and device and name each other") {
  auto records = good_records(2);
  records[3].node.host = {'b'};
  CHECK(contains(verdict(records), "on different hosts"));
  records = good_records(2);
  records[3].device_uuid[15] = 0xAB;
  CHECK(contains(verdict(records), "on different devices"));
  CHECK(contains(verdict(records), "010000000000000000000000000000ab"));
  records = good_records(2);
  records[0].partner = 3;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) takes rank 3"));
  records = good_records(2);
  records[0].partner = 1;
  records[1].partner = 0;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) takes rank 1"));
  records = good_records(2);
  records[1].partner = 4;
  CHECK(contains(verdict(records), "rank 4 as its partner, which does not exist"));
  records[1].partner = -1;
  CHECK(contains(verdict(records), "rank -1 as its partner, which does not exist"));
}

TEST_CASE("offers that make no sense are refused") {
  auto records = good_records(1);
  records[0].offered.count = 3;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  records = good_records(1);
  records[0].offered.chunk_bytes = 0;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  records = good_records(1);
  records[0].offered.bytes = 0;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  records = good_records(1);
  records[0].offered.bytes = 64 * (awex::kMaxChunks + 1);
  records[0].offered.count = awex::kMaxChunks + 1;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  records = good_records(1);
  records[1].offered.bytes = 1;
  CHECK(contains(verdict(records), "rank 1 (inference, host a) offers"));
  records = good_records(1);
  records[1].offered = records[0].offered;
  CHECK(contains(verdict(records), "rank 1 (inference, host a) offers"));
  records = good_records(1);
  records[0].offered = {};
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers 0 B by 0 nothing"));
  records = good_records(1);
  records[0].offered.kind = static_cast<HandleKind>(77);
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
}

TEST_CASE("what is offered must be of the kind that the partner maps, and both are named") {
  auto records = good_records(2);
  records[1].offered.kind = HandleKind::kVmmDescriptor;
  CHECK(
      verdict(records) ==
      "rank 1 (trainer, host a) offers its weights by VMM descriptors, rank 3 (inference, host a) "
      "maps memfds");
  records[3].maps = HandleKind::kVmmDescriptor;
  CHECK(verdict(records).empty());
}

TEST_CASE("what is lent is mapped by whoever shares the device") {
  auto records = good_records(1);
  auto& offered = records[0].offered;
  offered = {};
  offered.kind = HandleKind::kLent;
  offered.bytes = 100;
  offered.count = 3;
  offered.lent_number = 1;
  CHECK(verdict(records).empty());
  CHECK(offered.numbers().empty());
  offered.count = 0;
  CHECK(contains(verdict(records), "offers 100 B by 0 lent blocks"));
  offered.count = awex::kMostLentBlocks + 1;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  offered.count = 3;
  offered.lent_number = 0;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
}

namespace {

/// Memory of an engine's own in three blocks, two of which lie one behind the other in one file,
/// with the pattern of its rank in 100,000 bytes from the middle of the first block on.
class Own {
 public:
  static constexpr uint64_t kBlock = 64 << 10;
  static constexpr uint64_t kBytes = 100000;
  static constexpr uint64_t kBefore = 4096 + 8;

  Own() : fd_(::memfd_create("own", MFD_CLOEXEC)) {
    REQUIRE(::ftruncate(fd_.get(), 2 * kBlock) == 0);
    void* data = ::mmap(nullptr, 2 * kBlock, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    REQUIRE(data != MAP_FAILED);
    data_ = static_cast<std::byte*>(data);
  }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;
  ~Own() { ::munmap(data_, 2 * kBlock); }

  void fill(int rank) const {
    for (uint64_t at = 0; at < kBytes; ++at) data_[kBefore + at] = pattern(rank, at);
  }
  /// As if each half were a block of its own.
  [[nodiscard]] awex::LentMemory lent(uint64_t number) const {
    awex::LentMemory lent;
    lent.number = number;
    for (const uint64_t half : {1, 0}) {
      awex::UniqueFd fd(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
      const auto address = reinterpret_cast<uintptr_t>(data_) + half * kBlock;
      lent.lendings.push_back({{address, kBlock, half * kBlock, true, {}}, std::move(fd)});
    }
    lent.segments.push_back({8, data_ + kBefore, kBytes});
    return lent;
  }

 private:
  awex::UniqueFd fd_;
  std::byte* data_ = nullptr;
};

}  // namespace

TEST_CASE("what an engine lends is learnt once, and again when it is another") {
  const int me = job().rank();
  const auto& peer = job().peers()[static_cast<size_t>(me)];
  const auto device = awex::make_host_device(peer.device.index, 1);
  const bool trains = peer.role == Role::kTrainer;
  const Own own;
  own.fill(me);
  uint64_t open = 0;
  for (const uint64_t number : {1, 1, 2}) {
    const awex::LentMemory lent = own.lent(number);
    const awex::HandlesHere mine{.lent = trains ? &lent : nullptr, .borrowed = open};
    const auto received = awex::swap_handles(job(), awex::BackendKind::kHost, mine, partner_of(me),
                                             kFingerprint, FdTransport::kAuto);
    CHECK(received.is_lent == !trains);
    CHECK(received.lent.has_value() == (!trains && number != open));
    if (received.lent) {
      const awex::BorrowedMemory here(*device, "weights", *received.lent);
      CHECK(here.number() == number);
      REQUIRE(here.placed().segments().size() == 2);  // they lie apart here
      uint64_t wrong = 0;
      for (uint64_t at = 0; at < Own::kBytes; ++at) {
        wrong += *here.placed().at(8 + at, 1) != pattern(partner_of(me), at) ? 1 : 0;
      }
      CHECK(wrong == 0);
      open = number;
    }
    job().agree(nullptr);  // what is lent stays until it has been read
  }
}
