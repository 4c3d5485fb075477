// What the engine's library does on a GPU in the process that it is loaded in.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>

#include "attach/library/tag_memory.hpp"
#include "memory/device.hpp"
#include "memory/mapping_device.hpp"

using namespace awex;

namespace {

constexpr uint64_t kBytes = (16ULL << 30) + (6 << 20);
constexpr uint64_t kPattern = 64;

std::array<char, kPattern> read(const std::byte* device) {
  std::array<char, kPattern> found{};
  REQUIRE(cudaMemcpy(found.data(), device, kPattern, cudaMemcpyDeviceToHost) == cudaSuccess);
  return found;
}

uint64_t free_bytes() {
  size_t free = 0;
  size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  return free;
}

}  // namespace

TEST_CASE("a placeholder takes no more than two chunks, whatever it stands for") {
  const auto gpu = make_cuda_device(0, 1);
  const auto device = make_cuda_mapping_device(gpu->identity().uuid);
  const uint64_t chunk_bytes = gpu->make_chunks("kv_cache", kBytes)->chunking().chunk_bytes;
  attach::TagMemory memory(*device, Tag::kKvCache, kBytes, chunk_bytes);
  const uint64_t before = free_bytes();
  memory.map_placeholder();
  REQUIRE(memory.is_mapped());
  CHECK(before - free_bytes() <= 2 * chunk_bytes + (4 << 20));
  REQUIRE(cudaMemset(memory.data(), 0, kBytes) == cudaSuccess);
  REQUIRE(cudaMemset(memory.data() + 8, 7, kPattern) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  std::array<char, kPattern> sevens{};
  sevens.fill(7);
  CHECK(read(memory.data() + 8) == sevens);
  CHECK(read(memory.data() + chunk_bytes + 8) == sevens);
  memory.unmap();
  CHECK_FALSE(memory.is_mapped());
  CHECK(before - free_bytes() <= (4 << 20));
}
