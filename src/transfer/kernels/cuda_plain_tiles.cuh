#pragma once

#include <utility>

#include "model/digest.hpp"
#include "transfer/kernels/cuda_digest.cuh"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/kernels/cuda_tiles.cuh"

/// What a block does with a tile of elements that keep their dtype. Inline, for several kernels.

namespace awex::cuda {

template <class Vector>
__device__ const Vector* source_of(const CopyDescriptor& descriptor, const UnitWalk& walk) {
  return reinterpret_cast<const Vector*>(descriptor.from + walk.row() * descriptor.from_stride) +
         walk.col();
}

template <class Vector>
__device__ Vector* target_of(const CopyDescriptor& descriptor, const UnitWalk& walk) {
  return reinterpret_cast<Vector*>(descriptor.to + walk.row() * descriptor.to_stride) + walk.col();
}

/// For memory that nothing else touches soon: it displaces nothing in the cache.
struct PassingBy {
  template <class Value>
  static __device__ Value load(const Value* from) {
    return __ldcs(from);
  }
  template <class Value>
  static __device__ void store(Value* to, const Value& value) {
    __stcs(to, value);
  }
};

/// For memory that other blocks of the same launch touch: it stays in the cache that all blocks
/// share, and is read from there and not from a block's own, which does not know of their stores.
struct Shared {
  template <class Value>
  static __device__ Value load(const Value* from) {
    return __ldcg(from);
  }
  template <class Value>
  static __device__ void store(Value* to, const Value& value) {
    __stcg(to, value);
  }
};

/// All of a thread's loads are in flight before their first store.
template <class Vector, class Memory>
__device__ void copy_units(const CopyDescriptor& descriptor, uint64_t tile) {
  UnitWalk walk(descriptor.grid, tile);
  Vector values[kUnitsPerThread];
  Vector* targets[kUnitsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
    targets[i] = walk.inside() ? target_of<Vector>(descriptor, walk) : nullptr;
    if (walk.inside()) values[i] = Memory::load(source_of<Vector>(descriptor, walk));
  }
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    if (targets[i] != nullptr) Memory::store(targets[i], values[i]);
  }
}

/// Memory tells how both sides are reached: PassingBy or Shared.
template <class Memory>
__device__ void copy_tile(const CopyDescriptor& descriptor, uint64_t tile) {
  if (descriptor.width == 16) {
    copy_units<uint4, Memory>(descriptor, tile);
  } else if (descriptor.width == 8) {
    copy_units<uint2, Memory>(descriptor, tile);
  } else if (descriptor.width == 4) {
    copy_units<unsigned int, Memory>(descriptor, tile);
  } else if (descriptor.width == 2) {
    copy_units<unsigned short, Memory>(descriptor, tile);
  } else {
    copy_units<unsigned char, Memory>(descriptor, tile);
  }
}

/// Eight neighbouring elements in registers.
template <uint32_t kElementSize>
struct Group;

template <>
struct Group<1> {
  using Bits = uint8_t;
  uint2 raw;
  template <class Memory>
  __device__ void load(const std::byte* data) {
    raw = Memory::load(reinterpret_cast<const uint2*>(data));
  }
  template <size_t kLane>
  __device__ uint32_t bits() const {
    return ((kLane < 4 ? raw.x : raw.y) >> (8 * (kLane % 4))) & 0xffU;
  }
};

template <>
struct Group<2> {
  using Bits = uint16_t;
  uint4 raw;
  template <class Memory>
  __device__ void load(const std::byte* data) {
    raw = Memory::load(reinterpret_cast<const uint4*>(data));
  }
  template <size_t kLane>
  __device__ uint32_t bits() const {
    const uint32_t word = kLane < 2 ? raw.x : kLane < 4 ? raw.y : kLane < 6 ? raw.z : raw.w;
    return kLane % 2 == 0 ? word & 0xffffU : word >> 16;
  }
};

template <>
struct Group<4> {
  using Bits = uint32_t;
  uint4 low;
  uint4 high;
  template <class Memory>
  __device__ void load(const std::byte* data) {
    low = Memory::load(reinterpret_cast<const uint4*>(data));
    high = Memory::load(reinterpret_cast<const uint4*>(data) + 1);
  }
  template <size_t kLane>
  __device__ uint32_t bits() const {
    const uint4& four = kLane < 4 ? low : high;
    return kLane % 4 == 0 ? four.x : kLane % 4 == 1 ? four.y : kLane % 4 == 2 ? four.z : four.w;
  }
};

template <class Elements, size_t... kLane>
__device__ uint64_t sum_lanes(const Elements& group, std::index_sequence<kLane...>) {
  constexpr uint64_t kSumOfKeys = (LaneKey<kLane>::value + ...);
  return kSumOfKeys + ((LaneKey<kLane>::value * group.template bits<kLane>()) + ...);
}

/// One row of whole groups, which most views are. Groups have consecutive numbers, from which keys
/// are made, so that no registers are needed to find a group's place. As many groups at a time as
/// kLoads wide loads fetch.
template <uint32_t kElementSize, class Memory, uint32_t kLoads>
__device__ uint64_t digest_one_row(const DigestDescriptor& descriptor, uint64_t tile) {
  constexpr uint32_t kAtOnce = kElementSize == 4 ? kLoads / 2 : kLoads;
  constexpr uint64_t kGroupBytes = kDigestLanes * kElementSize;
  uint64_t sum = 0;
  uint64_t unit = tile * kTileUnits + threadIdx.x;
#pragma unroll 1
  for (uint32_t done = 0; done < kUnitsPerThread; done += kAtOnce) {
    const std::byte* from = descriptor.data + unit * kGroupBytes;
    Group<kElementSize> groups[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      groups[i] = {};
      if (unit + i * kTileThreads >= descriptor.grid.units) continue;
      groups[i].template load<Memory>(from + i * kTileThreads * kGroupBytes);
    }
    const uint64_t first_group = descriptor.first_index / kDigestLanes;
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, unit += kTileThreads) {
      const uint64_t key = group_key(descriptor.key, first_group + unit);
      // A unit outside the view adds nothing, whatever its bits.
      sum += (unit < descriptor.grid.units ? key : 0) * sum_lanes(groups[i], Lanes());
    }
  }
  return sum;
}

/// Rows of whole groups: one key and one or two wide loads for eight elements. As many units at a
/// time as kLoads wide loads fetch, so that enough are in flight and registers suffice.
template <uint32_t kElementSize, class Memory, uint32_t kLoads>
__device__ uint64_t digest_whole_groups(const DigestDescriptor& descriptor, uint64_t tile) {
  constexpr uint32_t kAtOnce = kElementSize == 4 ? kLoads / 2 : kLoads;
  const uint64_t first_group = descriptor.first_index / kDigestLanes;
  const uint64_t row_groups = descriptor.canonical_cols / kDigestLanes;
  uint64_t sum = 0;
  UnitWalk walk(descriptor.grid, tile);
#pragma unroll 1
  for (uint32_t done = 0; done < kUnitsPerThread; done += kAtOnce) {
    Group<kElementSize> groups[kAtOnce];
    uint64_t keys[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, walk.next()) {
      keys[i] = 0;  // a unit outside the view adds nothing, whatever its bits
      groups[i] = {};
      if (!walk.inside()) continue;
      const uint64_t element = walk.row() * descriptor.row_stride + walk.col() * kDigestLanes;
      groups[i].template load<Memory>(descriptor.data + element * kElementSize);
      keys[i] = group_key(descriptor.key, first_group + walk.row() * row_groups + walk.col());
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) sum += keys[i] * sum_lanes(groups[i], Lanes());
  }
  return sum;
}

/// The elements of one group that lie in a row [begin, end) of canonical indices; `row` is where
/// index `begin` lies.
template <class Memory, class Bits, size_t... kLane>
__device__ uint64_t sum_inside(const Bits* row, uint64_t begin, uint64_t end, uint64_t group,
                               std::index_sequence<kLane...>) {
  const auto term = [&](uint64_t lane, uint64_t lane_key) {
    const uint64_t index = group * kDigestLanes + lane;
    if (index < begin || index >= end) return uint64_t{0};
    return lane_key * (uint64_t{Memory::load(row + (index - begin))} + 1);
  };
  return (term(kLane, LaneKey<kLane>::value) + ...);
}

/// Rows that begin or end anywhere: element by element, still one key a group.
template <uint32_t kElementSize, class Memory>
__device__ uint64_t digest_any_rows(const DigestDescriptor& descriptor, uint64_t tile) {
  using Bits = typename Group<kElementSize>::Bits;
  const auto* elements = reinterpret_cast<const Bits*>(descriptor.data);
  uint64_t sum = 0;
  UnitWalk walk(descriptor.grid, tile);
  for (uint32_t i = 0; i < kUnitsPerThread && walk.inside(); ++i, walk.next()) {
    const uint64_t begin = descriptor.first_index + walk.row() * descriptor.canonical_cols;
    const uint64_t group = begin / kDigestLanes + walk.col();
    sum += group_key(descriptor.key, group) *
           sum_inside<Memory>(elements + walk.row() * descriptor.row_stride, begin,
                              begin + descriptor.cols, group, Lanes());
  }
  return sum;
}

template <uint32_t kElementSize, class Memory, uint32_t kLoads>
__device__ uint64_t digest_units(const DigestDescriptor& descriptor, uint64_t tile) {
  if (!descriptor.whole_groups) return digest_any_rows<kElementSize, Memory>(descriptor, tile);
  if (descriptor.grid.row_units == descriptor.grid.units) {
    return digest_one_row<kElementSize, Memory, kLoads>(descriptor, tile);
  }
  // Finding a place takes registers that loads would need.
  constexpr uint32_t kRowLoads = kLoads < kUnitsPerThread / 2 ? kLoads : kUnitsPerThread / 2;
  return digest_whole_groups<kElementSize, Memory, kRowLoads>(descriptor, tile);
}

/// What this thread's units of a tile add to the view's sum. Memory is PassingBy or Shared; kLoads
/// are in flight at once.
template <class Memory, uint32_t kLoads>
__device__ uint64_t digest_tile(const DigestDescriptor& descriptor, uint64_t tile) {
  if (descriptor.element_size == 2) return digest_units<2, Memory, kLoads>(descriptor, tile);
  if (descriptor.element_size == 4) return digest_units<4, Memory, kLoads>(descriptor, tile);
  return digest_units<1, Memory, kLoads>(descriptor, tile);
}

}  // namespace awex::cuda
