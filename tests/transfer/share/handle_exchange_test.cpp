#include "transfer/share/handle_exchange.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

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

void check_swap(FdTransport transport) {
  const int me = job().rank();
  const auto& peer = job().peers()[static_cast<size_t>(me)];
  const auto device = awex::make_host_device(peer.device.index, 1);
  constexpr uint64_t kBytes = (65ULL << 20) + 123;  // two chunks, the last in part
  const bool trains = peer.role == Role::kTrainer;
  const auto offered = trains ? offer(*device, kBytes) : nullptr;
  auto received =
      awex::swap_handles(job(), awex::BackendKind::kHost, offered ? &offered->owned() : nullptr,
                         partner_of(me), kFingerprint, transport);
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
    (void)awex::swap_handles(job(), awex::BackendKind::kHost, offered ? &offered->owned() : nullptr,
                             partner_of(me), me == odd ? kFingerprint + 1 : kFingerprint);
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

TEST_CASE("legacy handles are parts of allocations that make up the range") {
  auto records = good_records(1);
  records[1].maps = HandleKind::kLegacyIpc;
  auto& offered = records[0].offered;
  offered = {};
  offered.kind = HandleKind::kLegacyIpc;
  offered.bytes = 100;
  offered.count = 3;
  offered.legacy[0].bytes = 10;
  offered.legacy[1].bytes = 60;
  offered.legacy[2].bytes = 30;
  offered.legacy[3].bytes = 5;
  CHECK(verdict(records).empty());
  CHECK(offered.parts().size() == 3);
  CHECK(offered.numbers().empty());
  offered.count = 2;
  CHECK(contains(verdict(records), "offers 100 B by 2 legacy IPC handles"));
  offered.count = awex::kMostLegacyHandles + 1;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  offered.count = 3;
  offered.legacy[1].bytes = 0;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
  offered.legacy[1].bytes = ~uint64_t{0} - 20;
  CHECK(contains(verdict(records), "rank 0 (trainer, host a) offers"));
}
