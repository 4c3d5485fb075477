#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "memory/lent_memory.hpp"
#include "memory/mapped_chunks.hpp"
#include "memory/owned_chunks.hpp"

namespace awex {

/// What maps memory of a device that other processes own, lends this one's, and brings back what an
/// owner that is gone had moved to host memory. It has no threads, no stream and no context of its
/// own. For processes that are not ours. Every mapping must be destroyed before it.
class MappingDevice {
 public:
  MappingDevice() = default;
  MappingDevice(const MappingDevice&) = delete;
  MappingDevice& operator=(const MappingDevice&) = delete;
  MappingDevice(MappingDevice&&) = delete;
  MappingDevice& operator=(MappingDevice&&) = delete;
  virtual ~MappingDevice() = default;

  /// Reserves addresses to map an owner's range of `bytes` in chunks of `chunk_bytes`, for reading
  /// and writing. Throws Error(kRuntime).
  [[nodiscard]] virtual std::unique_ptr<MappedChunks> reserve(const std::string& name,
                                                              uint64_t bytes,
                                                              uint64_t chunk_bytes) = 0;
  /// What may own physical memory for a range of `bytes` (> 0), cut as a rank cuts it; takes none
  /// yet.
  [[nodiscard]] virtual std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                                 uint64_t bytes) = 0;
  /// Copies from host memory into mapped chunks; done on return. Throws Error(kRuntime).
  virtual void copy_in(std::byte* to, std::span<std::byte> from) = 0;
  /// The block of memory of this process's own that `address` lies in, for others to open. Throws a
  /// request error, with the remedy, for memory that no other process can map.
  [[nodiscard]] virtual Lending lend(const std::byte* address) = 0;
};

/// Of the host devices of this node, which all map alike.
[[nodiscard]] std::unique_ptr<MappingDevice> make_host_mapping_device();
/// Of the GPU with this UUID. It opens none: the process's own CUDA library does that, in the
/// primary context. Throws a request error that lists the GPUs that this process sees.
[[nodiscard]] std::unique_ptr<MappingDevice> make_cuda_mapping_device(
    const std::array<uint8_t, 16>& uuid);

}  // namespace awex
