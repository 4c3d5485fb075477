// Counts what our code takes from CUDA: functions of the runtime by the linker's --wrap, as in
// support/system_calls.cpp; those of the driver, which src/memory/cuda_driver looks up by name, by
// detours that the wrapped look-up returns.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "gpu/driver_lookup.hpp"
#include "support/call_counts.hpp"

namespace {

using awex::test::note_call;

/// A string that a template can have as its parameter.
template <size_t N>
struct Name {
  // NOLINTNEXTLINE(google-explicit-constructor): literals convert to it
  constexpr Name(const char (&literal)[N]) { std::copy_n(literal, N, text); }
  char text[N]{};
};

template <Name kName, class Pointer>
struct Counted;

/// Stands before a function of the driver.
template <Name kName, class... Arguments>
struct Counted<kName, CUresult (*)(Arguments...)> {
  using Pointer = CUresult (*)(Arguments...);
  static inline Pointer real = nullptr;
  static CUresult call(Arguments... arguments) {
    note_call(kName.text);
    return real(arguments...);
  }
};

struct Detour {
  std::string_view symbol;
  void* (*divert)(void* real);  ///< Returns what is to be called instead of `real`.
};

template <Name kName, class Pointer>
constexpr Detour detour() {
  return {kName.text, [](void* real) {
            Counted<kName, Pointer>::real = reinterpret_cast<Pointer>(real);
            return reinterpret_cast<void*>(&Counted<kName, Pointer>::call);
          }};
}

constexpr std::array kDetours{
    detour<"cuMemAddressReserve", PFN_cuMemAddressReserve_v10020>(),
    detour<"cuMemAddressFree", PFN_cuMemAddressFree_v10020>(),
    detour<"cuMemCreate", PFN_cuMemCreate_v10020>(),
    detour<"cuMemRelease", PFN_cuMemRelease_v10020>(),
    detour<"cuMemMap", PFN_cuMemMap_v10020>(),
    detour<"cuMemUnmap", PFN_cuMemUnmap_v10020>(),
    detour<"cuMemSetAccess", PFN_cuMemSetAccess_v10020>(),
    detour<"cuMemExportToShareableHandle", PFN_cuMemExportToShareableHandle_v10020>(),
    detour<"cuMemImportFromShareableHandle", PFN_cuMemImportFromShareableHandle_v10020>(),
};

/// Functions that only tell something; any other without a detour is one that this file has missed.
constexpr std::array<std::string_view, 4> kAskingFunctions{
    "cuGetErrorName", "cuGetErrorString", "cuDeviceGetAttribute", "cuMemGetAllocationGranularity"};

}  // namespace

void* awex::test::divert_driver_function(std::string_view symbol, void* real) {
  const auto* found = std::find_if(kDetours.begin(), kDetours.end(),
                                   [&](const Detour& detour) { return detour.symbol == symbol; });
  if (found != kDetours.end()) return found->divert(real);
  if (std::count(kAskingFunctions.begin(), kAskingFunctions.end(), symbol) == 0) {
    note_call("a function of the driver that tests/gpu/cuda_calls.cpp does not know");
  }
  return real;
}

extern "C" {

cudaError_t __real_cudaMalloc(void**, size_t);
cudaError_t __wrap_cudaMalloc(void** memory, size_t bytes) {
  note_call("cudaMalloc");
  return __real_cudaMalloc(memory, bytes);
}

cudaError_t __real_cudaMallocAsync(void**, size_t, cudaStream_t);
cudaError_t __wrap_cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream) {
  note_call("cudaMallocAsync");
  return __real_cudaMallocAsync(memory, bytes, stream);
}

cudaError_t __real_cudaFree(void*);
cudaError_t __wrap_cudaFree(void* memory) {
  note_call("cudaFree");
  return __real_cudaFree(memory);
}

cudaError_t __real_cudaMallocHost(void**, size_t);
cudaError_t __wrap_cudaMallocHost(void** memory, size_t bytes) {
  note_call("cudaMallocHost");
  return __real_cudaMallocHost(memory, bytes);
}

cudaError_t __real_cudaHostAlloc(void**, size_t, unsigned);
cudaError_t __wrap_cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  note_call("cudaHostAlloc");
  return __real_cudaHostAlloc(memory, bytes, flags);
}

cudaError_t __real_cudaFreeHost(void*);
cudaError_t __wrap_cudaFreeHost(void* memory) {
  note_call("cudaFreeHost");
  return __real_cudaFreeHost(memory);
}

cudaError_t __real_cudaHostRegister(void*, size_t, unsigned);
cudaError_t __wrap_cudaHostRegister(void* memory, size_t bytes, unsigned flags) {
  note_call("cudaHostRegister");
  return __real_cudaHostRegister(memory, bytes, flags);
}

cudaError_t __real_cudaHostUnregister(void*);
cudaError_t __wrap_cudaHostUnregister(void* memory) {
  note_call("cudaHostUnregister");
  return __real_cudaHostUnregister(memory);
}

cudaError_t __real_cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned);
cudaError_t __wrap_cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags) {
  note_call("cudaIpcOpenMemHandle");
  return __real_cudaIpcOpenMemHandle(memory, handle, flags);
}

cudaError_t __real_cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t __wrap_cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  note_call("cudaStreamCreateWithFlags");
  return __real_cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t __real_cudaStreamCreateWithPriority(cudaStream_t*, unsigned, int);
cudaError_t __wrap_cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags,
                                                int priority) {
  note_call("cudaStreamCreateWithPriority");
  return __real_cudaStreamCreateWithPriority(stream, flags, priority);
}

cudaError_t __real_cudaStreamDestroy(cudaStream_t);
cudaError_t __wrap_cudaStreamDestroy(cudaStream_t stream) {
  note_call("cudaStreamDestroy");
  return __real_cudaStreamDestroy(stream);
}

cudaError_t __real_cudaEventCreate(cudaEvent_t*);
cudaError_t __wrap_cudaEventCreate(cudaEvent_t* event) {
  note_call("cudaEventCreate");
  return __real_cudaEventCreate(event);
}

cudaError_t __real_cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t __wrap_cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  note_call("cudaEventCreateWithFlags");
  return __real_cudaEventCreateWithFlags(event, flags);
}

cudaError_t __real_cudaEventDestroy(cudaEvent_t);
cudaError_t __wrap_cudaEventDestroy(cudaEvent_t event) {
  note_call("cudaEventDestroy");
  return __real_cudaEventDestroy(event);
}

}  // extern "C"
