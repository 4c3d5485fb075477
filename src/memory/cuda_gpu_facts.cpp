#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "memory/cuda_check.hpp"
#include "memory/cuda_ranges.hpp"
#include "memory/gpu_facts.hpp"

namespace awex {
namespace {

/// Owns what cudaMalloc gave.
class Allocation final : public IpcMemory {
 public:
  explicit Allocation(uint64_t value) {
    AWEX_CHECK(cudaMalloc(&data_, kBytes), "take memory to be opened by another process");
    try {
      AWEX_CHECK(cudaMemcpy(data_, &value, sizeof(value), cudaMemcpyHostToDevice),
                 "write what another process is to read");
      cudaIpcMemHandle_t handle{};
      AWEX_CHECK(cudaIpcGetMemHandle(&handle, data_), "get a legacy IPC handle");
      static_assert(sizeof(handle) == sizeof(handle_));
      std::memcpy(handle_.data(), &handle, sizeof(handle));
    } catch (...) {
      cudaFree(data_);
      throw;
    }
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  Allocation(Allocation&&) = delete;
  Allocation& operator=(Allocation&&) = delete;
  ~Allocation() override { cudaFree(data_); }

  [[nodiscard]] IpcHandle handle() const override { return handle_; }

 private:
  static constexpr size_t kBytes = 2ULL << 20;

  void* data_ = nullptr;
  IpcHandle handle_{};
};

/// Owns the mapping of another process's allocation.
class OpenedAllocation {
 public:
  explicit OpenedAllocation(const IpcHandle& handle) {
    cudaIpcMemHandle_t wire{};
    std::memcpy(&wire, handle.data(), sizeof(wire));
    AWEX_CHECK(cudaIpcOpenMemHandle(&data_, wire, cudaIpcMemLazyEnablePeerAccess),
               "open a legacy IPC handle");
  }
  OpenedAllocation(const OpenedAllocation&) = delete;
  OpenedAllocation& operator=(const OpenedAllocation&) = delete;
  OpenedAllocation(OpenedAllocation&&) = delete;
  OpenedAllocation& operator=(OpenedAllocation&&) = delete;
  ~OpenedAllocation() { cudaIpcCloseMemHandle(data_); }

  [[nodiscard]] const void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

GpuFacts facts_of(int index) {
  cudaDeviceProp properties{};
  AWEX_CHECK(cudaGetDeviceProperties(&properties, index), "learn what gpu {} is", index);
  GpuFacts facts{{{}, index, properties.name}, properties.major, properties.minor};
  std::transform(std::begin(properties.uuid.bytes), std::end(properties.uuid.bytes),
                 facts.identity.uuid.begin(), [](char byte) { return static_cast<uint8_t>(byte); });
  return facts;
}

bool means_no_gpu(cudaError_t result) {
  if (result == cudaErrorNoDevice || result == cudaErrorStubLibrary) return true;
  // The same code stands for no driver (version 0) and for one that is too old for this binary.
  int driver_version = 0;
  return result == cudaErrorInsufficientDriver &&
         cudaDriverGetVersion(&driver_version) == cudaSuccess && driver_version == 0;
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  const auto result = cudaGetDeviceCount(&count);
  if (result == cudaSuccess) return count;
  const auto cause = CallResult<cudaError_t>::describe(result);
  if (means_no_gpu(result)) return 0;
  throw runtime_error("cannot count the GPUs: cudaGetDeviceCount: " + cause,
                      "nvidia-smi tells the driver's state; this binary needs a driver for CUDA " +
                          fmt::format("{}.{}", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10) +
                          ", or run with --backend host");
}

std::string why_no_cuda_device() {
  int count = 0;
  const auto result = cudaGetDeviceCount(&count);
  if (result == cudaSuccess) return "CUDA_VISIBLE_DEVICES shows none of those that the driver has";
  return "cudaGetDeviceCount: " + CallResult<cudaError_t>::describe(result);
}

CudaVersions cuda_versions() {
  CudaVersions versions;
  versions.runtime = CUDART_VERSION;
  AWEX_CHECK(cudaDriverGetVersion(&versions.driver), "ask for the driver's version");
  return versions;
}

std::vector<GpuFacts> visible_gpus() {
  std::vector<GpuFacts> gpus;
  const int count = cuda_device_count();
  for (int index = 0; index < count; ++index) gpus.push_back(facts_of(index));
  return gpus;
}

bool gpu_reaches(int index, const DeviceIdentity& other) { return reaches_device(index, other); }

std::unique_ptr<IpcMemory> make_ipc_memory(uint64_t value) {
  return std::make_unique<Allocation>(value);
}

uint64_t read_ipc_memory(const IpcHandle& handle) {
  const OpenedAllocation opened(handle);
  uint64_t value = 0;
  AWEX_CHECK(cudaMemcpy(&value, opened.data(), sizeof(value), cudaMemcpyDeviceToHost),
             "read another process's memory");
  return value;
}

}  // namespace awex
