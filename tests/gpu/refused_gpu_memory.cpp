// Refuses a GPU's memory as support/refused_memory.hpp says: in place of cuMemCreate, which
// src/memory/cuda_driver looks up by name, the look-up gives a function that may refuse.
#include <cuda.h>
#include <cudaTypedefs.h>

#include "gpu/driver_lookup.hpp"
#include "support/refused_memory.hpp"

namespace {

PFN_cuMemCreate_v10020 g_create = nullptr;

CUresult create_or_refuse(CUmemGenericAllocationHandle* handle, size_t bytes,
                          const CUmemAllocationProp* properties, unsigned long long flags) {
  if (awex::test::refuses_now()) return CUDA_ERROR_OUT_OF_MEMORY;
  return g_create(handle, bytes, properties, flags);
}

}  // namespace

void* awex::test::divert_driver_function(std::string_view symbol, void* real) {
  if (symbol != "cuMemCreate") return real;
  g_create = reinterpret_cast<PFN_cuMemCreate_v10020>(real);
  return reinterpret_cast<void*>(&create_or_refuse);
}
