#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "memory/device.hpp"

namespace awex {

/// Where ranges take their physical memory from.
struct CudaMemorySource {
  int device = 0;                  ///< CUDA device index.
  uint64_t granularity_bytes = 0;  ///< Of physical memory and of addresses.
};

/// Learns how memory of CUDA device `device` can be taken. Throws when it has no virtual memory
/// management or cannot export memory as POSIX file descriptors. The device must be current.
[[nodiscard]] CudaMemorySource inspect_cuda_memory(int device, const std::string& device_name);

/// Addresses for `bytes` (> 0) backed by pinned device memory that can be exported.
[[nodiscard]] std::unique_ptr<DeviceRange> make_cuda_range(const CudaMemorySource& source,
                                                           std::string name, uint64_t bytes);

/// Addresses to map another process's range of the same device.
[[nodiscard]] std::unique_ptr<ImportedRange> make_cuda_import(const CudaMemorySource& source,
                                                              std::string name, uint64_t bytes,
                                                              uint64_t chunk_bytes);

}  // namespace awex
