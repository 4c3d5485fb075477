#include "memory/cuda_driver.hpp"

#include "memory/cuda_check.hpp"

namespace awex {

void* find_driver_function(const char* symbol, unsigned version) {
  void* address = nullptr;
  auto status = cudaDriverEntryPointSymbolNotFound;
  const auto result =
      cudaGetDriverEntryPointByVersion(symbol, &address, version, cudaEnableDefault, &status);
  if (result != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return status == cudaDriverEntryPointSuccess ? address : nullptr;
}

std::string CallResult<cudaError_t>::describe(cudaError_t code) {
  cudaGetLastError();
  return fmt::format("{} ({}): {}", cudaGetErrorName(code), static_cast<int>(code),
                     cudaGetErrorString(code));
}

std::string CallResult<CUresult>::describe(CUresult code) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (cuGetErrorName(code, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown CUresult";
  if (cuGetErrorString(code, &text) != CUDA_SUCCESS || text == nullptr) text = "no description";
  return fmt::format("{} ({}): {}", name, static_cast<int>(code), text);
}

bool is_done(cudaError_t queried, const char* call, const std::string& what) {
  if (queried == cudaSuccess) return true;
  if (queried != cudaErrorNotReady) {
    throw_failed_call("finish " + what, call, CallResult<cudaError_t>::describe(queried));
  }
  cudaGetLastError();
  return false;
}

}  // namespace awex
