#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "plan/channels.hpp"
#include "transfer/kernels/cuda_convert_launch.hpp"

/// The launches behind transfer/move/peer_copies.hpp, in terms that nvcc and the host compiler
/// share.

namespace awex::cuda {

/// A copy of a stream as the device of one end reads it: rows of that end's memory, and their bytes
/// in the stream. A unit is what one thread moves at once.
struct PackedPiece {
  std::byte* data = nullptr;  ///< The first row; sources are only read.
  uint64_t stride = 0;        ///< Bytes from one row to the next.
  uint64_t begin = 0;         ///< In the stream; a multiple of kStreamAlignment.
  uint64_t end = 0;
  uint64_t first_byte = 0;   ///< Position of its first byte among all that this end moves.
  uint32_t row_units = 0;    ///< In one row.
  uint32_t unit_bytes = 0;   ///< In the stream; 1, 2, 4, 8 or 16 if not `converts`.
  bool converts = false;     ///< At the sender alone; rows are of elements of conversion.from then.
  bool whole_units = false;  ///< Of a conversion: units are of kUnitElements, else of one.
  Conversion conversion;
};

/// A number by which two devices tell each other how far they are in a channel. It only grows, but
/// wraps around.
using ChannelCount = uint32_t;

/// All that goes to, or comes from, one peer.
struct ChannelStream {
  const PackedPiece* pieces = nullptr;     ///< By place in the stream.
  const uint32_t* first_pieces = nullptr;  ///< By packet: the first piece with bytes in it.
  uint32_t piece_count = 0;
  uint32_t peer = 0;                ///< Inference role rank.
  uint64_t bytes = 0;               ///< Of the stream.
  std::byte* slots = nullptr;       ///< The receiver's staging memory.
  ChannelCount* arrived = nullptr;  ///< At the receiver: packets that have come.
  ChannelCount* granted = nullptr;  ///< At the sender: packets that there is, or was, a slot for.
};

/// One pass through all streams of a rank, which has the same number of both directions.
struct ChannelPass {
  const ChannelStream* sends = nullptr;
  const ChannelStream* receives = nullptr;
  uint32_t streams = 0;         ///< Of each direction.
  uint32_t channels = 0;        ///< Of each direction.
  uint32_t base = 0;            ///< What this pass's counts begin with.
  uint32_t* waits = nullptr;    ///< kChannelWaits, of the host's memory.
  uint64_t* differs = nullptr;  ///< Position of the first differing byte, for a comparison.
};

/// What a pass adds to counts is less, so that later passes have larger ones: as many packets are
/// more than the memory of a device.
inline constexpr uint32_t kCountsOfPass = 1U << 20;

/// Each block's place in ChannelPass::waits: 1 + the rank for which it has waited for long, else 0.
/// Those that send come first.
inline constexpr uint32_t kChannelWaits = 2 * kMostChannels;

/// How many channels of each direction, kMostChannels at most, the current device runs at once. All
/// blocks of a pass must, for they wait for those of other devices. Loads the kernels.
cudaError_t count_channels(uint32_t* channels);

/// Sends and receives all packets of a pass, in one launch.
cudaError_t launch_channel_copy(const ChannelPass& pass, cudaStream_t stream);
/// The same, but compares what comes with what is there and lowers `*differs`.
cudaError_t launch_channel_compare(const ChannelPass& pass, cudaStream_t stream);

}  // namespace awex::cuda
