#pragma once

#include <cstring>
#include <iterator>
#include <type_traits>

#include "transfer/kernels/cuda_convert_launch.hpp"

/// How a thread loads, converts and stores neighbouring elements that change their dtype. Inline,
/// for several kernels.

namespace awex::cuda {

/// Neighbouring elements in registers, or the part of them in lanes [begin, end) of a Place.
template <class Bits>
struct Unit {
  Bits lanes[kUnitElements];
};

/// Which elements of its rows a unit holds: those of `row` from `col` on.
struct Place {
  uint64_t row = 0;
  uint64_t col = 0;    ///< Of lane `begin`.
  uint32_t begin = 0;  ///< Lane.
  uint32_t end = 0;

  __device__ bool empty() const { return begin >= end; }
  __device__ bool has(uint32_t lane) const { return lane >= begin && lane < end; }
};

template <class Bits>
using WideAccess = std::conditional_t<sizeof(Unit<Bits>) == 8, uint2, uint4>;

template <class Bits>
__device__ Unit<Bits> load_whole(const std::byte* from) {
  using Wide = WideAccess<Bits>;
  Wide values[sizeof(Unit<Bits>) / sizeof(Wide)];
#pragma unroll
  for (uint32_t i = 0; i < std::size(values); ++i) {
    values[i] = __ldcs(reinterpret_cast<const Wide*>(from) + i);
  }
  Unit<Bits> unit;
  memcpy(&unit, values, sizeof(unit));
  return unit;
}

template <class Bits>
__device__ void store_whole(std::byte* to, const Unit<Bits>& unit) {
  using Wide = WideAccess<Bits>;
  Wide values[sizeof(unit) / sizeof(Wide)];
  memcpy(values, &unit, sizeof(unit));
#pragma unroll
  for (uint32_t i = 0; i < std::size(values); ++i) {
    __stcs(reinterpret_cast<Wide*>(to) + i, values[i]);
  }
}

/// The unit at `from`, where lane place.begin lies; zeros in the lanes outside the place. Any
/// alignment, if not whole.
template <class Bits>
__device__ Unit<Bits> load_unit(const std::byte* from, const Place& place, bool whole) {
  if (whole) return load_whole<Bits>(from);
  Unit<Bits> unit{};
#pragma unroll
  for (uint32_t lane = 0; lane < kUnitElements; ++lane) {
    if (!place.has(lane)) continue;
    memcpy(&unit.lanes[lane], from + (lane - place.begin) * sizeof(Bits), sizeof(Bits));
  }
  return unit;
}

template <class Bits>
__device__ void store_unit(std::byte* to, const Unit<Bits>& unit, const Place& place, bool whole) {
  if (whole) return store_whole(to, unit);
#pragma unroll
  for (uint32_t lane = 0; lane < kUnitElements; ++lane) {
    if (!place.has(lane)) continue;
    memcpy(to + (lane - place.begin) * sizeof(Bits), &unit.lanes[lane], sizeof(Bits));
  }
}

/// `place` is not empty. Lanes outside it stay zero.
template <class From, class To>
__device__ Unit<typename To::Bits> convert_unit(const Unit<typename From::Bits>& unit,
                                                const ScaleGrid& grid, const Place& place) {
  Unit<typename To::Bits> result{};
  ScaleRun run;
  float scale = 1;
  if constexpr (kHasScales<To>) {
    run = scale_run(grid, place.row, place.col);
    scale = *run.scale;
  }
#pragma unroll
  for (uint32_t lane = 0; lane < kUnitElements; ++lane) {
    if (!place.has(lane)) continue;
    if constexpr (kHasScales<To>) {
      if (run.elements == 0) {
        run = {run.scale + 1, grid.block};
        scale = *run.scale;
      }
      --run.elements;
    }
    result.lanes[lane] = converted<From, To>(unit.lanes[lane], scale);
  }
  return result;
}

}  // namespace awex::cuda
