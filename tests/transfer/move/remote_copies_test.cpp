#include "transfer/move/remote_copies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "plan/channels.hpp"
#include "support/mpi_job.hpp"
#include "support/remote_case.hpp"
#include "transfer/kernels/host_kernels.hpp"

using namespace awex;
using awex::test::job;
using awex::test::RemoteCase;

namespace {

/// Memory of the host device.
class HostBuffer {
 public:
  explicit HostBuffer(uint64_t bytes) : bytes_(bytes) {}
  [[nodiscard]] std::byte* data() { return bytes_.data(); }
  void write(uint64_t at, std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  [[nodiscard]] std::vector<std::byte> fetch() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

const Peer& me() { return job().peers()[static_cast<size_t>(job().rank())]; }

/// `abort_first` breaks off, on some ranks, what is not even under way.
void check_copies(ExchangeKind kind, uint64_t staging_bytes, bool abort_first) {
  const auto device = make_host_device(0, 1);
  const auto kernels = make_host_kernels(*device, 2);
  const auto copies = make_remote_copies(job(), *device, *kernels, kind, true, false);
  CHECK((copies == nullptr) == (me().role == Role::kTrainer));
  if (copies == nullptr) return;
  CHECK(copies->staging_bytes() == staging_bytes);
  if (abort_first) {
    for (uint32_t times = 0; times <= me().role_rank; ++times) copies->abort(job().deadline());
    copies->rebuild();
  }
  const auto ranks = ranks_of(job().peers(), Role::kInference).size();
  // More than one message, where all peers share a buffer.
  const RemoteCase one(static_cast<uint32_t>(ranks), kStagingBytes / 3 / ranks);
  const uint64_t from_bytes = one.from_bytes(me().role_rank);
  const uint64_t to_bytes = one.to_bytes(me().role_rank);
  test::RemoteCaseMemory<HostBuffer> memory{HostBuffer(from_bytes), HostBuffer(to_bytes),
                                            HostBuffer(from_bytes), HostBuffer(to_bytes)};
  test::RemoteCaseRun<HostBuffer>(*copies, *kernels, one, me().role_rank, memory).check();
}

}  // namespace

TEST_CASE(
    "remote copies of every kind bring what a direct copy would, and comparing finds a byte") {
  check_copies(ExchangeKind::kAuto, kStagingBytes, false);
}

TEST_CASE("so do those that are written into the receivers' memory, also after an abort") {
  check_copies(ExchangeKind::kPeer, kSlotsBytes + (2 << 20), true);
}

TEST_CASE("peer copies that were aborted refuse to go on before they are rebuilt") {
  const auto device = make_host_device(0, 1);
  const auto kernels = make_host_kernels(*device, 1);
  const auto copies =
      make_remote_copies(job(), *device, *kernels, ExchangeKind::kPeer, true, false);
  if (copies == nullptr) return;
  copies->abort(job().deadline());
  CHECK_THROWS_WITH_AS(copies->copy(), "peer copies were aborted and not rebuilt", Error);
}

TEST_CASE("where nothing goes between devices nothing is taken, and nothing can be exchanged") {
  const auto device = make_host_device(0, 1);
  const auto kernels = make_host_kernels(*device, 1);
  const auto copies =
      make_remote_copies(job(), *device, *kernels, ExchangeKind::kAuto, false, false);
  if (copies == nullptr) return;
  CHECK(copies->staging_bytes() == 0);
  copies->prepare({0, 2, {}, {}}, {}, {});
  copies->copy();
  copies->wait();
  CHECK_FALSE(copies->difference().has_value());
  const RemoteCase one(2, 64);
  CHECK_THROWS_AS(copies->prepare(one.of(0), {}, {}), Error);
}
