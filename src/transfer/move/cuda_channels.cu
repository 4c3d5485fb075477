#include <cuda/atomic>

#include "transfer/kernels/cuda_convert_units.cuh"
#include "transfer/kernels/cuda_differences.cuh"
#include "transfer/move/cuda_channels.hpp"

namespace awex::cuda {
namespace {

constexpr uint32_t kThreads = 512;
/// Wide values that a thread has in flight: what registers suffice for where a multiprocessor has
/// one block. More blocks, with less in flight, are slower (docs/benchmarks.md).
constexpr uint32_t kAtOnce = 8;

enum class Task : uint8_t { kSend, kReceive, kCompare };

using Count = ::cuda::atomic_ref<ChannelCount, ::cuda::thread_scope_system>;

/// One thread's walk over units [first, first + units) of a descriptor, kThreads apart.
class RangeWalk {
 public:
  __device__ RangeWalk(const PackedCopyDescriptor& descriptor, uint32_t first, uint32_t units)
      : data_(descriptor.data),
        stride_(descriptor.stride),
        row_units_(descriptor.row_units),
        units_(units),
        unit_(threadIdx.x),
        row_((first + threadIdx.x) / row_units_),
        col_(first + threadIdx.x - row_ * row_units_) {}

  __device__ bool inside() const { return unit_ < units_; }
  /// Counted from the range's first.
  __device__ uint32_t unit() const { return unit_; }
  __device__ uint32_t col() const { return col_; }
  __device__ uint32_t row() const { return row_; }
  __device__ std::byte* row_data() const { return data_ + row_ * stride_; }

  __device__ void next() {
    unit_ += kThreads;
    col_ += kThreads;
    if (col_ < row_units_) return;
    const uint32_t rows = col_ / row_units_;
    row_ += rows;
    col_ -= rows * row_units_;
  }

 private:
  std::byte* data_;
  uint64_t stride_;
  uint32_t row_units_;
  uint32_t units_;
  uint32_t unit_;
  uint32_t row_;
  uint32_t col_;
};

/// Bytes [from, to) of a descriptor, whose first one lies at `packed` in a slot.
struct Range {
  uint32_t from;
  uint32_t to;
  std::byte* packed;

  __device__ RangeWalk walk(const PackedCopyDescriptor& descriptor, uint32_t unit_bytes) const {
    return {descriptor, from / unit_bytes, (to - from) / unit_bytes};
  }
};

template <class Vector>
__device__ Vector* in_memory(const RangeWalk& walk) {
  return reinterpret_cast<Vector*>(walk.row_data()) + walk.col();
}
template <class Vector>
__device__ Vector* in_slot(const RangeWalk& walk, const Range& range) {
  return reinterpret_cast<Vector*>(range.packed) + walk.unit();
}

/// Slots are read from the cache that all blocks share: a block's own does not know of other
/// devices' stores.
template <class Vector, bool kSends>
__device__ Vector load(const RangeWalk& walk, const Range& range) {
  if constexpr (kSends) return __ldcs(in_memory<Vector>(walk));
  return __ldcg(in_slot<Vector>(walk, range));
}
template <class Vector, bool kSends>
__device__ void store(const RangeWalk& walk, const Range& range, const Vector& value) {
  if constexpr (kSends) {
    *in_slot<Vector>(walk, range) = value;
  } else {
    __stcs(in_memory<Vector>(walk), value);
  }
}

template <class Vector, bool kSends>
__device__ void move_units(const PackedCopyDescriptor& descriptor, const Range& range) {
  RangeWalk walk = range.walk(descriptor, sizeof(Vector));
  while (walk.inside()) {
    Vector values[kAtOnce];
    RangeWalk ahead = walk;
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, ahead.next()) {
      if (ahead.inside()) values[i] = load<Vector, kSends>(ahead, range);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, walk.next()) {
      if (walk.inside()) store<Vector, kSends>(walk, range, values[i]);
    }
  }
}

template <class Vector>
__device__ void compare_units(const PackedCopyDescriptor& descriptor, const Range& range,
                              uint64_t* differs) {
  RangeWalk walk = range.walk(descriptor, sizeof(Vector));
  for (; walk.inside(); walk.next()) {
    const Vector came = __ldcg(in_slot<Vector>(walk, range));
    const Vector held = __ldcs(in_memory<Vector>(walk));
    const uint32_t byte = first_differing_byte(came, held);
    if (byte == sizeof(Vector)) continue;
    lower(differs, descriptor.first_byte + range.from + walk.unit() * sizeof(Vector) + byte);
    return;
  }
}

template <class From, class To>
__device__ void convert_units(const PackedCopyDescriptor& descriptor, const Range& range) {
  const uint32_t elements = descriptor.unit_bytes / sizeof(typename To::Bits);
  for (RangeWalk walk = range.walk(descriptor, descriptor.unit_bytes); walk.inside(); walk.next()) {
    const Place place{walk.row(), uint64_t{walk.col()} * elements, 0, elements};
    const auto* from = walk.row_data() + place.col * sizeof(typename From::Bits);
    const auto unit = load_unit<typename From::Bits>(from, place, descriptor.whole_units);
    store_unit(range.packed + walk.unit() * descriptor.unit_bytes,
               convert_unit<From, To>(unit, descriptor.conversion.grid, place), place,
               descriptor.whole_units);
  }
}

/// Apart, for its registers are not to weigh on what moves bytes.
__device__ __noinline__ void convert(const PackedCopyDescriptor& descriptor, const Range& range) {
  with_elements(descriptor.conversion, [&](auto source, auto target) {
    convert_units<decltype(source), decltype(target)>(descriptor, range);
  });
}

template <class Vector, Task kTask>
__device__ void treat_units(const PackedCopyDescriptor& descriptor, const Range& range,
                            uint64_t* differs) {
  if constexpr (kTask == Task::kCompare) {
    compare_units<Vector>(descriptor, range, differs);
  } else {
    move_units<Vector, kTask == Task::kSend>(descriptor, range);
  }
}

template <Task kTask>
__device__ void treat_part(const PackedCopyDescriptor& descriptor, const Range& range,
                           uint64_t* differs) {
  if (kTask == Task::kSend && descriptor.converts) {
    convert(descriptor, range);
  } else if (descriptor.unit_bytes == 16) {
    treat_units<uint4, kTask>(descriptor, range, differs);
  } else if (descriptor.unit_bytes == 8) {
    treat_units<uint2, kTask>(descriptor, range, differs);
  } else if (descriptor.unit_bytes == 4) {
    treat_units<unsigned int, kTask>(descriptor, range, differs);
  } else if (descriptor.unit_bytes == 2) {
    treat_units<unsigned short, kTask>(descriptor, range, differs);
  } else {
    treat_units<unsigned char, kTask>(descriptor, range, differs);
  }
}

/// A block of threads as one end of a channel (transfer/move/channel_steps.hpp).
template <Task kTask>
class Block {
 public:
  __device__ Block(const DevicePass& pass, uint32_t* wait) : pass_(pass), wait_(wait) {}

  /// After many looks it notes for whom it waits. The host's memory, where it is told to stop, is
  /// far away: it looks there seldom.
  __device__ bool await(ChannelCount* count, ChannelCount value, uint32_t peer) const {
    constexpr uint32_t kPauseNs = 20;
    constexpr uint32_t kLooksBetween = 1000;  // about 1 ms
    constexpr uint32_t kManyLooks = 100'000;  // about 0.1 s
    bool stopped = false;
    if (threadIdx.x == 0) {
      const Count word(*count);
      uint32_t looks = 0;
      while (!has_come_to(word.load(::cuda::std::memory_order_acquire), value)) {
        if (++looks % kLooksBetween == 0) {
          if (looks == kManyLooks) Count(*wait_).store(peer + 1, ::cuda::std::memory_order_relaxed);
          stopped = Count(*pass_.stop).load(::cuda::std::memory_order_relaxed) != 0;
          if (stopped) break;
        }
        __nanosleep(kPauseNs);
      }
      if (looks >= kManyLooks && !stopped) {
        Count(*wait_).store(0, ::cuda::std::memory_order_relaxed);
      }
    }
    return __syncthreads_or(stopped) == 0;
  }

  __device__ void tell(ChannelCount* count, ChannelCount value) const {
    __syncthreads();
    if (threadIdx.x == 0) Count(*count).store(value, ::cuda::std::memory_order_release);
  }

  __device__ void treat(const DevicePackedStream& stream, uint32_t packet, std::byte* slot) const {
    for_each_part(
        stream, packet, slot,
        [&](const PackedCopyDescriptor& descriptor, uint32_t from, uint32_t to, std::byte* at) {
          treat_part<kTask>(descriptor, Range{from, to, at}, pass_.differs);
        });
  }

 private:
  const DevicePass& pass_;
  uint32_t* wait_;
};

template <ChannelEnd kEnd, Task kTask>
__device__ void serve(const DevicePass& pass, uint32_t channel) {
  serve_channel<kEnd>(pass, channel, Block<kTask>(pass, pass.waits + wait_of(kEnd, channel)));
}

template <Task kReceive>
__global__ void __launch_bounds__(kThreads) channels_kernel(const DevicePass pass) {
  if (blockIdx.x < pass.channels) {
    serve<ChannelEnd::kSender, Task::kSend>(pass, blockIdx.x);
  } else {
    serve<ChannelEnd::kReceiver, kReceive>(pass, blockIdx.x - pass.channels);
  }
}

template <Task kReceive>
cudaError_t launch(const DevicePass& pass, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2 * pass.channels);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, channels_kernel<kReceive>, pass);
}

template <Task kReceive>
cudaError_t count_resident(int* blocks) {
  int device = 0;
  int processors = 0;
  if (const auto code = cudaGetDevice(&device)) return code;
  if (const auto code =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return code;
  }
  const auto code =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, channels_kernel<kReceive>, kThreads, 0);
  *blocks *= processors;
  return code;
}

}  // namespace

cudaError_t count_channels(uint32_t* channels) {
  int copying = 0;
  int comparing = 0;
  if (const auto code = count_resident<Task::kReceive>(&copying)) return code;
  if (const auto code = count_resident<Task::kCompare>(&comparing)) return code;
  const auto fit = static_cast<uint32_t>(copying < comparing ? copying : comparing) / 2;
  *channels = fit < kMostChannels ? fit : kMostChannels;
  return cudaSuccess;
}

cudaError_t launch_channel_copy(const DevicePass& pass, cudaStream_t stream) {
  return launch<Task::kReceive>(pass, stream);
}

cudaError_t launch_channel_compare(const DevicePass& pass, cudaStream_t stream) {
  return launch<Task::kCompare>(pass, stream);
}

}  // namespace awex::cuda
