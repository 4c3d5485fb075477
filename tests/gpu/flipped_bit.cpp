// The same where memory may be a GPU's.
#include "support/flipped_bit.hpp"

#include <cuda_runtime_api.h>

#include "memory/cuda_check.hpp"

void awex::test::flip_bits(std::byte* where, std::byte bits) {
  cudaPointerAttributes memory{};
  const bool is_known = cudaPointerGetAttributes(&memory, where) == cudaSuccess;
  if (!is_known || memory.type != cudaMemoryTypeDevice) {
    cudaGetLastError();
    *where ^= bits;
    return;
  }
  std::byte value{};
  AWEX_CHECK(cudaMemcpy(&value, where, 1, cudaMemcpyDeviceToHost), "read a byte to damage");
  value ^= bits;
  AWEX_CHECK(cudaMemcpy(where, &value, 1, cudaMemcpyHostToDevice), "damage a byte");
}
