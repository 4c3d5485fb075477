#pragma once

#include <cstdint>
#include <cstring>

namespace awex::cuda {

/// The first byte in which two values differ; their size if they do not.
template <class Vector>
__device__ uint32_t first_differing_byte(const Vector& a, const Vector& b) {
  unsigned char left[sizeof(Vector)];
  unsigned char right[sizeof(Vector)];
  memcpy(left, &a, sizeof(Vector));
  memcpy(right, &b, sizeof(Vector));
  uint32_t first = sizeof(Vector);
#pragma unroll
  for (uint32_t i = sizeof(Vector); i-- > 0;) {
    if (left[i] != right[i]) first = i;
  }
  return first;
}

/// Lowers `*least` to `value`, for all threads at once.
inline __device__ void lower(uint64_t* least, uint64_t value) {
  using Taken = unsigned long long;  // atomicMin takes no other 64-bit type
  atomicMin(reinterpret_cast<Taken*>(least), static_cast<Taken>(value));
}

}  // namespace awex::cuda
