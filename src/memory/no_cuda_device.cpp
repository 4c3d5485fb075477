// The cuda backend of a binary that was built without it.
#include "base/error.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"
#include "memory/mapping_device.hpp"

namespace awex {
namespace {

[[noreturn]] void fail_without_cuda() {
  throw runtime_error("this binary was built without CUDA",
                      "build it again where nvcc, the CUDA Toolkit and NCCL are found");
}

}  // namespace

bool built_with_cuda() { return false; }

int cuda_device_count() { return 0; }

std::string why_no_cuda_device() { return "this binary was built without CUDA"; }

std::unique_ptr<Device> make_cuda_device(int index, size_t /*pool_threads*/) {
  throw request_error(
      fmt::format("cannot open gpu {}: this binary was built without CUDA", index),
      "run with --backend host, or build again where nvcc, the CUDA Toolkit and NCCL are found");
}

std::unique_ptr<MappingDevice> make_cuda_mapping_device(const std::array<uint8_t, 16>& /*uuid*/) {
  throw request_error("this library was built without CUDA",
                      "build awex-colocate again where nvcc, the CUDA Toolkit and NCCL are found");
}

CudaVersions cuda_versions() { return {}; }

std::vector<GpuFacts> visible_gpus() { return {}; }

bool gpu_reaches(int /*index*/, const DeviceIdentity& /*other*/) { return false; }

std::unique_ptr<IpcMemory> make_ipc_memory(uint64_t /*value*/) { fail_without_cuda(); }

uint64_t read_ipc_memory(const IpcHandle& /*handle*/) { fail_without_cuda(); }

}  // namespace awex
