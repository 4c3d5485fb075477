// Compiled with IEEE division, nvcc's default: the host divides by the same scales.
#include <cstring>
#include <utility>

#include "transfer/kernels/cuda_convert_launch.hpp"
#include "transfer/kernels/cuda_convert_units.cuh"
#include "transfer/kernels/cuda_differences.cuh"
#include "transfer/kernels/cuda_digest.cuh"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/kernels/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

static_assert(kUnitElements == kDigestLanes);

/// Calls use(place, converted unit) for each of this thread's units; place_of(walk) tells where one
/// is. Several units' loads are in flight before the first is used, as many as registers suffice
/// for.
template <class From, class To, class PlaceOf, class Use>
__device__ void for_each_unit(const ConvertedRows& rows, const UnitGrid& grid,
                              const PlaceOf& place_of, const Use& use) {
  using Bits = typename From::Bits;
  constexpr uint32_t kAtOnce = sizeof(Bits) == 4 ? 2 : 4;
  UnitWalk walk(grid);
#pragma unroll 1
  for (uint32_t done = 0; done < kUnitsPerThread; done += kAtOnce) {
    Place places[kAtOnce];
    Unit<Bits> units[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, walk.next()) {
      places[i] = walk.inside() ? place_of(walk) : Place{};
      if (places[i].empty()) continue;
      const auto* first = rows.data + places[i].row * rows.row_stride;
      units[i] = load_unit<Bits>(first + places[i].col * sizeof(Bits), places[i], rows.whole_units);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (places[i].empty()) continue;
      use(places[i], convert_unit<From, To>(units[i], rows.conversion.grid, places[i]));
    }
  }
}

__device__ Place place_in_row(const ConvertDescriptor& descriptor, const UnitWalk& walk) {
  const uint64_t col = walk.col() * kUnitElements;
  const uint64_t left = descriptor.from.cols - col;
  return {walk.row(), col, 0, left < kUnitElements ? static_cast<uint32_t>(left) : kUnitElements};
}

template <class From, class To>
__device__ void convert_tile(const ConvertDescriptor& descriptor) {
  using Bits = typename To::Bits;
  for_each_unit<From, To>(
      descriptor.from, descriptor.grid,
      [&](const UnitWalk& walk) { return place_in_row(descriptor, walk); },
      [&](const Place& place, const Unit<Bits>& unit) {
        auto* to = descriptor.to + place.row * descriptor.to_stride + place.col * sizeof(Bits);
        store_unit(to, unit, place, descriptor.from.whole_units);
      });
}

/// This thread's first difference, as a position in the batch.
template <class From, class To>
__device__ uint64_t compare_tile(const ConvertDescriptor& descriptor) {
  using Bits = typename To::Bits;
  uint64_t position = kNoDifference;
  for_each_unit<From, To>(
      descriptor.from, descriptor.grid,
      [&](const UnitWalk& walk) { return place_in_row(descriptor, walk); },
      [&](const Place& place, const Unit<Bits>& wanted) {
        const auto* to =
            descriptor.to + place.row * descriptor.to_stride + place.col * sizeof(Bits);
        const auto held = load_unit<Bits>(to, place, descriptor.from.whole_units);
        const uint32_t byte = first_differing_byte(wanted, held);
        if (byte == sizeof(wanted) || position != kNoDifference) return;
        position = descriptor.first_byte +
                   (place.row * descriptor.from.cols + place.col) * sizeof(Bits) + byte;
      });
  return position;
}

/// The part of a group of canonical elements that lies in a row; nothing of a group behind the row.
__device__ Place place_in_group(const ConvertedDigestDescriptor& descriptor, const UnitWalk& walk) {
  const uint64_t row_begin = descriptor.first_index + walk.row() * descriptor.canonical_cols;
  const uint64_t row_end = row_begin + descriptor.from.cols;
  const uint64_t group_begin = (row_begin / kDigestLanes + walk.col()) * kDigestLanes;
  const uint64_t begin = group_begin < row_begin ? row_begin : group_begin;
  const uint64_t group_end = group_begin + kDigestLanes;
  const uint64_t end = group_end < row_end ? group_end : row_end;
  if (begin >= end) return {};
  return {walk.row(), begin - row_begin, static_cast<uint32_t>(begin - group_begin),
          static_cast<uint32_t>(end - group_begin)};
}

template <class Bits, size_t... kLane>
__device__ uint64_t sum_lanes(const Unit<Bits>& unit, const Place& place,
                              std::index_sequence<kLane...>) {
  const auto term = [&](uint32_t lane, uint64_t lane_key) {
    return place.has(lane) ? lane_key * (uint64_t{unit.lanes[lane]} + 1) : uint64_t{0};
  };
  return (term(kLane, LaneKey<kLane>::value) + ...);
}

template <class From, class To>
__device__ uint64_t digest_tile(const ConvertedDigestDescriptor& descriptor) {
  uint64_t sum = 0;
  for_each_unit<From, To>(
      descriptor.from, descriptor.grid,
      [&](const UnitWalk& walk) { return place_in_group(descriptor, walk); },
      [&](const Place& place, const Unit<typename To::Bits>& unit) {
        const uint64_t index =
            descriptor.first_index + place.row * descriptor.canonical_cols + place.col;
        sum += group_key(descriptor.key, index / kDigestLanes) * sum_lanes(unit, place, Lanes());
      });
  return sum;
}

__global__ void __launch_bounds__(kTileThreads)
    convert_kernel(const ConvertDescriptor* descriptors, const uint32_t* owners) {
  const ConvertDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  with_elements(descriptor.from.conversion, [&](auto source, auto target) {
    convert_tile<decltype(source), decltype(target)>(descriptor);
  });
}

__global__ void __launch_bounds__(kTileThreads)
    compare_converted_kernel(const ConvertDescriptor* descriptors, const uint32_t* owners,
                             uint64_t* first) {
  const ConvertDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  const uint64_t position =
      with_elements(descriptor.from.conversion, [&](auto source, auto target) {
        return compare_tile<decltype(source), decltype(target)>(descriptor);
      });
  if (position != kNoDifference) lower(first, position);
}

__global__ void __launch_bounds__(kTileThreads)
    digest_converted_kernel(const ConvertedDigestDescriptor* descriptors, const uint32_t* owners,
                            Atomic* sums) {
  const ConvertedDigestDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  const uint64_t sum = with_elements(descriptor.from.conversion, [&](auto source, auto target) {
    return digest_tile<decltype(source), decltype(target)>(descriptor);
  });
  add_block_sum(sum, sums + descriptor.sum);
}

/// The elements of a view that one scale is for.
struct BlockBox {
  const std::byte* data;
  uint64_t row_stride;  ///< Bytes.
  uint64_t rows;
  uint64_t row_bytes;
};

__device__ BlockBox box_of(const ScaleDescriptor& descriptor, uint64_t element_size,
                           uint64_t block_row, uint64_t block_col) {
  const uint64_t row = descriptor.rows.begin(block_row);
  const uint64_t col = descriptor.cols.begin(block_col);
  return {descriptor.data + (row * descriptor.row_stride + col) * element_size,
          descriptor.row_stride * element_size, descriptor.rows.end(block_row) - row,
          (descriptor.cols.end(block_col) - col) * element_size};
}

/// The largest magnitude of what this thread reads, one Vector at a time: its share of the box.
/// Behind the end it reads the first ones again, which changes nothing and needs no branch between
/// loads.
template <class Element, class Vector>
__device__ typename Element::Bits largest_of_thread(const BlockBox& box) {
  using Bits = typename Element::Bits;
  const uint64_t row_units = box.row_bytes / sizeof(Vector);
  Bits largest = 0;
  UnitWalk walk(box.rows * row_units, row_units, threadIdx.x);
  while (walk.inside()) {
    Vector values[kUnitsPerThread];
#pragma unroll
    for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
      const uint64_t at = walk.row() * box.row_stride + walk.col() * sizeof(Vector);
      values[i] = *reinterpret_cast<const Vector*>(box.data + (walk.inside() ? at : 0));
    }
#pragma unroll
    for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
      Bits lanes[sizeof(Vector) / sizeof(Bits)];
      memcpy(lanes, &values[i], sizeof(Vector));
#pragma unroll
      for (const Bits lane : lanes) {
        const Bits magnitude = magnitude_bits<Element>(lane);
        largest = magnitude > largest ? magnitude : largest;
      }
    }
  }
  return largest;
}

/// The largest value of all threads of a block, in thread 0.
__device__ uint32_t largest_of_block(uint32_t value) {
  constexpr uint32_t kWarpThreads = 32;
  __shared__ uint32_t of_warps[kTileThreads / kWarpThreads];
  for (uint32_t distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_down_sync(0xffffffffU, value, distance));
  }
  if (threadIdx.x % kWarpThreads == 0) of_warps[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (const uint32_t of_warp : of_warps) value = max(value, of_warp);
  }
  return value;
}

/// One block of threads for one block of elements, so that no other writes its scale.
__global__ void __launch_bounds__(kTileThreads)
    amax_kernel(const ScaleDescriptor* descriptors, const uint32_t* owners) {
  const ScaleDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  const uint64_t unit = blockIdx.x - descriptor.grid.first_tile;
  const uint64_t block_row = unit / descriptor.grid.row_units;
  const uint64_t block_col = unit - block_row * descriptor.grid.row_units;
  const uint32_t mine = with_source(descriptor.dtype, [&](auto source) {
    using Element = decltype(source);
    using Bits = typename Element::Bits;
    const auto box = box_of(descriptor, sizeof(Bits), block_row, block_col);
    const uint64_t places = reinterpret_cast<uintptr_t>(box.data) | box.row_stride | box.row_bytes;
    const Bits largest = places % sizeof(uint4) == 0 ? largest_of_thread<Element, uint4>(box)
                                                     : largest_of_thread<Element, Bits>(box);
    return F32Element::bits(Element::value(largest));
  });
  const uint32_t largest = largest_of_block(mine);
  if (threadIdx.x != 0) return;
  descriptor.scales.scales[block_row * descriptor.scales.row_stride + block_col] =
      F32Element::value(largest);
}

__global__ void __launch_bounds__(kTileThreads)
    scales_kernel(const ScaleDescriptor* descriptors, const uint32_t* owners) {
  const ScaleDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  UnitWalk walk(descriptor.grid);
  for (uint32_t i = 0; i < kUnitsPerThread && walk.inside(); ++i, walk.next()) {
    float& scale = descriptor.scales.scales[walk.row() * descriptor.scales.row_stride + walk.col()];
    scale = block_scale(scale);
  }
}

}  // namespace

cudaError_t launch_convert(const ConvertDescriptor* descriptors, const uint32_t* owners,
                           uint32_t tiles, cudaStream_t stream) {
  return launch_tiles(convert_kernel, tiles, stream, descriptors, owners);
}

cudaError_t launch_compare_converted(const ConvertDescriptor* descriptors, const uint32_t* owners,
                                     uint32_t tiles, uint64_t* first, cudaStream_t stream) {
  return launch_tiles(compare_converted_kernel, tiles, stream, descriptors, owners, first);
}

cudaError_t launch_digest_converted(const ConvertedDigestDescriptor* descriptors,
                                    const uint32_t* owners, uint32_t tiles, uint64_t* sums,
                                    cudaStream_t stream) {
  return launch_tiles(digest_converted_kernel, tiles, stream, descriptors, owners,
                      reinterpret_cast<Atomic*>(sums));
}

cudaError_t launch_amax(const ScaleDescriptor* descriptors, const uint32_t* owners, uint32_t tiles,
                        cudaStream_t stream) {
  return launch_tiles(amax_kernel, tiles, stream, descriptors, owners);
}

cudaError_t launch_scales(const ScaleDescriptor* descriptors, const uint32_t* owners,
                          uint32_t tiles, cudaStream_t stream) {
  return launch_tiles(scales_kernel, tiles, stream, descriptors, owners);
}

}  // namespace awex::cuda
