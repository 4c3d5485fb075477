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

/// The owner of a range of `bytes` (> 0): pinned device memory that can be exported, no addresses.
[[nodiscard]] std::unique_ptr<OwnedChunks> make_cuda_chunks(const CudaMemorySource& source,
                                                            std::string name, uint64_t bytes);

/// Addresses to map a range of this process or of another one, of the same device or of one that it
/// reaches.
[[nodiscard]] std::unique_ptr<MappedChunks> make_cuda_mapping(const CudaMemorySource& source,
                                                              std::string name, uint64_t bytes,
                                                              uint64_t chunk_bytes,
                                                              MappedAccess access);

/// Whether CUDA device `device` can map memory of the device `other` of this host: it is the same
/// one, or this process sees it and a link for such accesses (NVLink, PCIe) joins them.
[[nodiscard]] bool reaches_device(int device, const DeviceIdentity& other);

}  // namespace awex
