#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "transfer/kernels/cuda_convert_launch.hpp"
#include "transfer/move/channel_steps.hpp"

/// The launches behind transfer/move/cuda_peer_channels.hpp, in terms that nvcc and the host
/// compiler share.

namespace awex::cuda {

/// A copy of a packed stream as the device of one end reads it: rows of that end's memory, and
/// their bytes in the stream. A unit is what one thread moves at once.
struct PackedCopyDescriptor {
  std::byte* data = nullptr;  ///< The first row; sources are only read.
  uint64_t stride = 0;        ///< Bytes from one row to the next.
  /// In the stream; a multiple of kPackedStreamAlignment, but for parts of a copy whose target lies
  /// in several segments: their units divide it.
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t first_byte = 0;   ///< Position of its first byte among all that this end moves.
  uint32_t row_units = 0;    ///< In one row.
  uint32_t unit_bytes = 0;   ///< In the stream; 1, 2, 4, 8 or 16 if not `converts`.
  bool converts = false;     ///< At the sender alone; rows are of elements of conversion.from then.
  bool whole_units = false;  ///< Of a conversion: units are of kUnitElements, else of one.
  Conversion conversion;
};

using DevicePackedStream = ChannelPackedStream<PackedCopyDescriptor>;
/// Its addresses are of the device, but those that are said to be of the host: pinned memory.
using DevicePass = ChannelPass<PackedCopyDescriptor>;

/// How many channels of each direction, kMostChannels at most, the current device runs at once. All
/// blocks of a pass must, for they wait for those of other devices. Loads the kernels.
cudaError_t count_channels(uint32_t* channels);

/// Sends and receives all packets of a pass, in one launch.
cudaError_t launch_channel_copy(const DevicePass& pass, cudaStream_t stream);
/// The same, but compares what comes with what is there and lowers `*differs`.
cudaError_t launch_channel_compare(const DevicePass& pass, cudaStream_t stream);

}  // namespace awex::cuda
