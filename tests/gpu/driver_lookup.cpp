#include "gpu/driver_lookup.hpp"

#include <cuda_runtime_api.h>

extern "C" {

cudaError_t __real_cudaGetDriverEntryPointByVersion(const char*, void**, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult*);
cudaError_t __wrap_cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                    unsigned version, unsigned long long flags,
                                                    cudaDriverEntryPointQueryResult* status) {
  const auto result =
      __real_cudaGetDriverEntryPointByVersion(symbol, function, version, flags, status);
  if (result == cudaSuccess && *function != nullptr) {
    *function = awex::test::divert_driver_function(symbol, *function);
  }
  return result;
}

}  // extern "C"
