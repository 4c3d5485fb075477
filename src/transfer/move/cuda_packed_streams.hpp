#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "memory/cuda_owners.hpp"
#include "memory/placed_memory.hpp"
#include "plan/packed_streams.hpp"
#include "transfer/move/cuda_channels.hpp"

/// Packed streams as a device reads them.

namespace awex::cuda {

/// The copies of all streams, one after the other, as their sender's device reads them: `trainer`
/// is the memory that they come from.
[[nodiscard]] std::vector<PackedCopyDescriptor> descriptors_to_send(
    const std::vector<PackedStream>& streams, const PlacedMemory& trainer);
/// As their receiver's device does: `own` is the memory that they go to.
[[nodiscard]] std::vector<PackedCopyDescriptor> descriptors_to_receive(
    const std::vector<PackedStream>& streams, const PlacedMemory& own);

/// Owns the descriptors of one direction's packed streams, ready on the device.
class DevicePackedStreams {
 public:
  /// `descriptors` are of all streams, `links` has one for each.
  DevicePackedStreams(const std::vector<PackedStream>& streams,
                      const std::vector<PackedCopyDescriptor>& descriptors,
                      const std::vector<PackedStreamLink>& links, cudaStream_t stream);

  [[nodiscard]] const DevicePackedStream* data() const { return streams_.data(); }

 private:
  DeviceArray<PackedCopyDescriptor> descriptors_;
  DeviceArray<uint32_t> first_descriptors_;
  DeviceArray<DevicePackedStream> streams_;
};

}  // namespace awex::cuda
