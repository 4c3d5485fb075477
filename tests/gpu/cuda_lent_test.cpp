// Memory of an engine's own, in each kind that PyTorch takes it in, read by a rank beside it on one
// GPU.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "gpu/gpu_bench.hpp"
#include "memory/cuda_driver.hpp"
#include "memory/lent_memory.hpp"
#include "memory/mapping_device.hpp"
#include "support/mpi_job.hpp"
#include "transfer/share/handle_exchange.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::job;
using awex::test::named_bytes;

namespace {

constexpr uint64_t kPart = 2 << 20;

/// What an expandable segment is: addresses that were reserved once, with a handle of physical
/// memory for each part of them.
class Segment {
 public:
  Segment(uint64_t parts, CUmemAllocationHandleType type) : bytes_(parts * kPart) {
    REQUIRE(awex::cuMemAddressReserve(&address_, bytes_, 0, 0, 0) == CUDA_SUCCESS);
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = type;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    for (uint64_t part = 0; part < parts; ++part) {
      CUmemGenericAllocationHandle handle = 0;
      REQUIRE(awex::cuMemCreate(&handle, kPart, &properties, 0) == CUDA_SUCCESS);
      REQUIRE(awex::cuMemMap(address_ + part * kPart, kPart, 0, handle, 0) == CUDA_SUCCESS);
      awex::cuMemRelease(handle);
    }
    REQUIRE(awex::cuMemSetAccess(address_, bytes_, &access, 1) == CUDA_SUCCESS);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  Segment(Segment&&) = delete;
  Segment& operator=(Segment&&) = delete;
  ~Segment() {
    awex::cuMemUnmap(address_, bytes_);
    awex::cuMemAddressFree(address_, bytes_);
  }

  [[nodiscard]] std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  CUdeviceptr address_ = 0;
  uint64_t bytes_;
};

/// What cudaMalloc gives.
class Malloced {
 public:
  explicit Malloced(uint64_t bytes) {
    void* data = nullptr;
    REQUIRE(cudaMalloc(&data, bytes) == cudaSuccess);
    data_ = static_cast<std::byte*>(data);
  }
  Malloced(const Malloced&) = delete;
  Malloced& operator=(const Malloced&) = delete;
  Malloced(Malloced&&) = delete;
  Malloced& operator=(Malloced&&) = delete;
  ~Malloced() { cudaFree(data_); }

  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

constexpr uint64_t kMallocedBytes = (3 << 20) + 8;
constexpr uint64_t kBefore = 4096 + 16;  ///< Of a segment, that is none of the weights.

std::vector<std::byte> content(uint32_t trainer, uint64_t bytes) {
  return named_bytes(bytes, 77 + trainer);
}

void write(std::byte* to, const std::vector<std::byte>& bytes) {
  CHECK(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

/// Adds every block that `bytes` bytes from `from` on lie in; how many those are.
int lend(MappingDevice& lender, const std::byte* from, uint64_t bytes, LentMemory& lent) {
  int blocks = 0;
  for (auto at = reinterpret_cast<uintptr_t>(from), end = at + bytes; at < end; ++blocks) {
    auto lending = lender.lend(reinterpret_cast<const std::byte*>(at));
    CHECK(lending.block.address <= at);
    at = lending.block.address + lending.block.bytes;
    lent.lendings.push_back(std::move(lending));
  }
  return blocks;
}

std::string refusal(MappingDevice& lender, const std::byte* address) {
  try {
    (void)lender.lend(address);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE(
    "what an engine has taken by cudaMalloc or in an expandable segment is read where it is") {
  GpuBench bench;
  const int half = job().size() / 2;
  const bool trains = job().rank() < half;
  const int partner = trains ? job().rank() + half : job().rank() - half;
  const uint32_t trainer = job().peers()[job().rank()].role_rank;
  const auto lender = make_cuda_mapping_device(bench.device->identity().uuid);
  const Malloced malloced(kMallocedBytes);
  const Segment segment(3, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  const uint64_t segment_bytes = segment.bytes() - kBefore;
  const auto wanted = content(trainer, kMallocedBytes + segment_bytes);
  LentMemory lent;
  lent.number = 1;
  if (trains) {
    write(malloced.data(), {wanted.begin(), wanted.begin() + kMallocedBytes});
    write(segment.data() + kBefore, {wanted.begin() + kMallocedBytes, wanted.end()});
    CHECK(lend(*lender, malloced.data(), kMallocedBytes, lent) == 1);
    CHECK_FALSE(lent.lendings[0].block.has_fd);
    CHECK(lend(*lender, segment.data() + kBefore, segment_bytes, lent) == 3);
    CHECK(lent.lendings[3].block.has_fd);
    lent.segments = {{0, malloced.data(), kMallocedBytes},
                     {kMallocedBytes, segment.data() + kBefore, segment_bytes}};
  }
  const HandlesHere here{.lent = trains ? &lent : nullptr};
  const auto received = swap_handles(job(), BackendKind::kCuda, here, partner, 42);
  if (!trains) {
    REQUIRE(received.lent.has_value());
    const BorrowedMemory borrowed(*bench.device, "weights", *received.lent);
    const GpuBuffer own(*bench.device, std::vector<std::byte>(wanted.size(), std::byte{0xee}));
    std::vector<StridedCopy> copies;
    for (const auto& part : borrowed.placed().segments()) {
      copies.push_back(
          {part.address, own.data() + part.offset_bytes, 1, part.bytes, part.bytes, part.bytes});
    }
    CHECK(copies.size() == 4);
    const auto batch = bench.kernels->prepare_copies(copies);
    batch->copy();
    bench.wait();
    CHECK((own.fetch() == wanted));
  }
  job().agree(nullptr);  // what is lent stays until it has been read
}

TEST_CASE("memory that cannot be exported is refused with the remedy") {
  GpuBench bench;
  const auto lender = make_cuda_mapping_device(bench.device->identity().uuid);
  const Segment segment(1, CU_MEM_HANDLE_TYPE_NONE);
  const auto vmm = refusal(*lender, segment.data());
  CHECK(vmm.find("taken in a way that no other process can map") != std::string::npos);
  CHECK(vmm.find("adopt") != std::string::npos);
  void* pooled = nullptr;
  REQUIRE(cudaMallocAsync(&pooled, 1 << 20, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(refusal(*lender, static_cast<std::byte*>(pooled)).find("adopt") != std::string::npos);
  CHECK(cudaFreeAsync(pooled, nullptr) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(refusal(*lender, nullptr) != "nothing was thrown");
}
