#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "base/error.hpp"

namespace awex {

/// Reads results of the CUDA runtime for AWEX_CHECK. `describe` also clears the runtime's last
/// error of this thread, so that the next call does not report this one again.
template <>
struct CallResult<cudaError_t> {
  static bool ok(cudaError_t code) { return code == cudaSuccess; }
  /// "cudaErrorMemoryAllocation (2): out of memory"
  static std::string describe(cudaError_t code);
};

/// Reads results of the CUDA driver for AWEX_CHECK.
template <>
struct CallResult<CUresult> {
  static bool ok(CUresult code) { return code == CUDA_SUCCESS; }
  /// "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"
  static std::string describe(CUresult code);
};

/// Whether queued work is done, by what `call` (cudaStreamQuery or cudaEventQuery) returned. Throws
/// "cannot finish <what>: <call>: …" when the work failed.
[[nodiscard]] bool is_done(cudaError_t queried, const char* call, const std::string& what);

}  // namespace awex
