#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory/device.hpp"
#include "memory/lent_memory.hpp"

/// What the CUDA driver says of itself and of its GPUs, for those who look whether an update can
/// run. Without CUDA in the build, or without a driver, there is nothing to be said.

namespace awex {

/// As CUDA writes versions: 12040 is 12.4. 0: there is none.
struct CudaVersions {
  int driver = 0;   ///< The newest CUDA that the driver serves.
  int runtime = 0;  ///< That this binary was built with.
};

/// Throws Error(kRuntime).
[[nodiscard]] CudaVersions cuda_versions();

/// CUDA devices that this process can use; 0 without a driver, a GPU or CUDA in the build.
[[nodiscard]] int cuda_device_count();
/// Why there is none, where cuda_device_count is 0: "the driver finds no GPU".
[[nodiscard]] std::string why_no_cuda_device();

/// A GPU that this process sees.
struct GpuFacts {
  DeviceIdentity identity;
  int capability_major = 0;
  int capability_minor = 0;
};

/// Of all GPUs that this process sees, by their index in it. Opens none of them. Throws
/// Error(kRuntime).
[[nodiscard]] std::vector<GpuFacts> visible_gpus();

/// Whether device `index` can map memory of the GPU `other` of this host: it is the same one, or
/// this process sees it and a link for such accesses joins them. Throws Error(kRuntime).
[[nodiscard]] bool gpu_reaches(int index, const DeviceIdentity& other);

/// A few bytes from cudaMalloc that another process may open by their handle, as engines offer the
/// memory that they have not taken by VMM. Freed on destruction.
class IpcMemory {
 public:
  IpcMemory() = default;
  IpcMemory(const IpcMemory&) = delete;
  IpcMemory& operator=(const IpcMemory&) = delete;
  IpcMemory(IpcMemory&&) = delete;
  IpcMemory& operator=(IpcMemory&&) = delete;
  virtual ~IpcMemory() = default;
  [[nodiscard]] virtual IpcHandle handle() const = 0;
};

/// Memory on the current device that begins with `value`. Throws Error(kRuntime).
[[nodiscard]] std::unique_ptr<IpcMemory> make_ipc_memory(uint64_t value);
/// What the memory of another process begins with. Throws Error(kRuntime).
[[nodiscard]] uint64_t read_ipc_memory(const IpcHandle& handle);

}  // namespace awex
