#include <vector>

#include "base/error.hpp"
#include "base/hex.hpp"
#include "base/units.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_driver.hpp"
#include "memory/cuda_lent.hpp"
#include "memory/cuda_ranges.hpp"
#include "memory/gpu_facts.hpp"
#include "memory/mapping_device.hpp"

namespace awex {
namespace {

/// Has this thread use a device, as whose process it is may not, until it ends.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    AWEX_CHECK(cuCtxGetCurrent(&former_), "learn this thread's context");
    AWEX_CHECK(cudaSetDevice(device), "use gpu {}", device);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  OnDevice(OnDevice&&) = delete;
  OnDevice& operator=(OnDevice&&) = delete;
  ~OnDevice() { cuCtxSetCurrent(former_); }

 private:
  CUcontext former_ = nullptr;
};

class CudaMappingDevice final : public MappingDevice {
 public:
  explicit CudaMappingDevice(const DeviceIdentity& identity)
      : source_(inspect_cuda_memory(identity.index, identity.name)) {}

  [[nodiscard]] std::unique_ptr<MappedChunks> reserve(const std::string& name, uint64_t bytes,
                                                      uint64_t chunk_bytes) override {
    return make_cuda_mapping(source_, name, bytes, chunk_bytes, MappedAccess::kReadWrite);
  }

  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                         uint64_t bytes) override {
    return make_cuda_chunks(source_, name, bytes);
  }

  void copy_in(std::byte* to, std::span<std::byte> from) override {
    const OnDevice here(source_.device);
    const auto what = format_bytes(from.size());
    AWEX_CHECK(cudaHostRegister(from.data(), from.size(), cudaHostRegisterDefault),
               "pin {} of host memory", what);
    const auto copied = cudaMemcpy(to, from.data(), from.size(), cudaMemcpyHostToDevice);
    const auto synchronized = cudaDeviceSynchronize();
    cudaHostUnregister(from.data());
    AWEX_CHECK(copied, "copy {} to the GPU", what);
    AWEX_CHECK(synchronized, "copy {} to the GPU", what);
  }

  [[nodiscard]] Lending lend(const std::byte* address) override {
    const OnDevice here(source_.device);
    return lend_cuda_memory(address);
  }

 private:
  CudaMemorySource source_;
};

}  // namespace

std::unique_ptr<MappingDevice> make_cuda_mapping_device(const std::array<uint8_t, 16>& uuid) {
  std::string seen;
  for (const auto& gpu : visible_gpus()) {
    if (gpu.identity.uuid == uuid) return std::make_unique<CudaMappingDevice>(gpu.identity);
    seen += fmt::format("{}gpu {} is {}", seen.empty() ? "" : ", ", gpu.identity.index,
                        hex_of(gpu.identity.uuid));
  }
  throw request_error(fmt::format("this process does not see the GPU {}: {}", hex_of(uuid),
                                  seen.empty() ? "it sees none" : seen),
                      "see CUDA_VISIBLE_DEVICES of the engine and of the job's ranks");
}

}  // namespace awex
