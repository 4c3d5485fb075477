// A trainer's range mapped by the inference rank beside it, on one GPU.
#include <doctest/doctest.h>

#include <vector>

#include "base/units.hpp"
#include "gpu/gpu_bench.hpp"
#include "support/mpi_job.hpp"
#include "transfer/share/handle_exchange.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::job;
using awex::test::named_bytes;

namespace {

constexpr uint64_t kBytes = (64ULL << 20) + 12'345;

std::vector<std::byte> content(uint32_t trainer, uint64_t cycle) {
  return named_bytes(kBytes, 1000 * trainer + cycle);
}

/// Writes a version's bytes and offers the range, until inference has read it.
void train(GpuBench& bench, DeviceRange& range, int partner, uint64_t cycle,
           FdTransport transport) {
  const auto bytes = content(job().peers()[job().rank()].role_rank, cycle);
  range.take_chunks(0, range.chunks());
  CHECK(cudaMemcpy(range.data(), bytes.data(), bytes.size(), cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  bench.wait();
  (void)swap_handles(job(), BackendKind::kCuda, {.owned = &range.owned()}, partner, 42, transport);
}

/// Maps the trainer's range and copies it with the kernels, straight from the trainer's memory.
void infer(GpuBench& bench, MappedChunks& import, int partner, uint64_t cycle,
           FdTransport transport) {
  auto received = swap_handles(job(), BackendKind::kCuda, {}, partner, 42, transport);
  CHECK(received.bytes == kBytes);
  import.map(std::move(received.fds));
  const GpuBuffer own(*bench.device, std::vector<std::byte>(kBytes, std::byte{0xee}));
  const StridedCopy copy{import.data(), own.data(), 1, kBytes, kBytes, kBytes};
  const auto batch = bench.kernels->prepare_copies({&copy, 1});
  batch->copy();
  bench.wait();
  CHECK((own.fetch() == content(job().peers()[job().rank()].role_rank, cycle)));
  import.unmap();
}

}  // namespace

TEST_CASE("inference reads its trainer's memory through every transport, version after version") {
  GpuBench bench;
  const int half = job().size() / 2;
  const bool trains = job().rank() < half;
  const int partner = trains ? job().rank() + half : job().rank() - half;
  const auto range = bench.device->reserve("weights", kBytes);
  const auto import = bench.device->reserve_mapping("weights", kBytes, range->chunk_bytes());
  uint64_t cycle = 0;
  for (const auto transport : {FdTransport::kAuto, FdTransport::kSocket, FdTransport::kAuto}) {
    CAPTURE(cycle);
    if (trains) {
      train(bench, *range, partner, cycle, transport);
    } else {
      infer(bench, *import, partner, cycle, transport);
    }
    job().agree(nullptr);
    if (trains) {
      range->release_chunks(0, range->chunks());
    }
    job().agree(nullptr);
    ++cycle;
  }
}
