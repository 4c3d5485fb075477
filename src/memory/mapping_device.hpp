#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "memory/lent_memory.hpp"
#include "memory/mapped_chunks.hpp"

namespace awex {

/// What maps memory of a device that other processes own, and lends this one's, and does no more:
/// it has no threads, no stream and no context of its own. For processes that are not ours. Every
/// mapping must be destroyed before it.
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
