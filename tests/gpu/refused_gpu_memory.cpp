// Refuses a GPU's memory as support/refused_memory.hpp says: in place of cuMemCreate, which
// src/memory/cuda_driver looks up by name, the look-up gives a function that may refuse.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <string_view>

#include "support/refused_memory.hpp"

namespace {

PFN_cuMemCreate_v10020 g_create = nullptr;

CUresult create_or_refuse(CUmemGenericAllocationHandle* handle, size_t bytes,
                          const CUmemAllocationProp* properties, unsigned long long flags) {
  if (awex::test::refuses_now()) return CUDA_ERROR_OUT_OF_MEMORY;
  return g_create(handle, bytes, properties, flags);
}

}  // namespace

extern "C" {

cudaError_t __real_cudaGetDriverEntryPointByVersion(const char*, void**, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult*);
cudaError_t __wrap_cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                    unsigned version, unsigned long long flags,
                                                    cudaDriverEntryPointQueryResult* status) {
  const auto result =
      __real_cudaGetDriverEntryPointByVersion(symbol, function, version, flags, status);
  if (result != cudaSuccess || *function == nullptr) return result;
  if (std::string_view(symbol) == "cuMemCreate") {
    g_create = reinterpret_cast<PFN_cuMemCreate_v10020>(*function);
    *function = reinterpret_cast<void*>(&create_or_refuse);
  }
  return result;
}

}  // extern "C"
