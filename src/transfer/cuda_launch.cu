#include "transfer/cuda_launch.hpp"

#include <utility>

#include "model/digest.hpp"
#include "transfer/cuda_digest.cuh"
#include "transfer/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

template <class Vector>
__device__ const Vector* source_of(const CopyPiece& piece, const UnitWalk& walk) {
  return reinterpret_cast<const Vector*>(piece.from + walk.row() * piece.from_stride) + walk.col();
}

template <class Vector>
__device__ Vector* target_of(const CopyPiece& piece, const UnitWalk& walk) {
  return reinterpret_cast<Vector*>(piece.to + walk.row() * piece.to_stride) + walk.col();
}

/// All of a thread's loads are in flight before its first store. The hints keep bytes that are read
/// or written once from displacing others in the cache.
template <class Vector>
__device__ void copy_tile(const CopyPiece& piece) {
  UnitWalk walk(piece.grid);
  Vector values[kUnitsPerThread];
  Vector* targets[kUnitsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
    targets[i] = walk.inside() ? target_of<Vector>(piece, walk) : nullptr;
    if (walk.inside()) values[i] = __ldcs(source_of<Vector>(piece, walk));
  }
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    if (targets[i] != nullptr) __stcs(targets[i], values[i]);
  }
}

// Four blocks an SM: what eight 16-byte values a thread leave room for in the registers.
__global__ void __launch_bounds__(kTileThreads, 4)
    copy_kernel(const CopyPiece* pieces, const uint32_t* owners) {
  const CopyPiece& piece = pieces[owners[blockIdx.x]];
  if (piece.width == 16) {
    copy_tile<uint4>(piece);
  } else if (piece.width == 8) {
    copy_tile<uint2>(piece);
  } else if (piece.width == 4) {
    copy_tile<unsigned int>(piece);
  } else if (piece.width == 2) {
    copy_tile<unsigned short>(piece);
  } else {
    copy_tile<unsigned char>(piece);
  }
}

__device__ bool same(uint4 a, uint4 b) {
  return ((a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w)) == 0;
}
__device__ bool same(uint2 a, uint2 b) { return ((a.x ^ b.x) | (a.y ^ b.y)) == 0; }
__device__ bool same(unsigned int a, unsigned int b) { return a == b; }

template <class Vector>
__device__ uint32_t first_differing_byte(const Vector* a, const Vector* b) {
  const auto* left = reinterpret_cast<const unsigned char*>(a);
  const auto* right = reinterpret_cast<const unsigned char*>(b);
  uint32_t at = 0;
  while (at + 1 < sizeof(Vector) && left[at] == right[at]) ++at;
  return at;
}

template <class Vector>
__device__ void compare_tile(const CopyPiece& piece, Atomic* first) {
  UnitWalk walk(piece.grid);
  uint64_t position = kNoDifference;
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i, walk.next()) {
    if (!walk.inside()) break;
    const auto* from = source_of<Vector>(piece, walk);
    const auto* to = target_of<Vector>(piece, walk);
    if (same(__ldcs(from), __ldcs(to)) || position != kNoDifference) continue;
    position = piece.first_byte + walk.unit() * sizeof(Vector) + first_differing_byte(from, to);
  }
  if (position != kNoDifference) atomicMin(first, static_cast<Atomic>(position));
}

__global__ void __launch_bounds__(kTileThreads)
    compare_kernel(const CopyPiece* pieces, const uint32_t* owners, Atomic* first) {
  const CopyPiece& piece = pieces[owners[blockIdx.x]];
  if (piece.width == 16) {
    compare_tile<uint4>(piece, first);
  } else if (piece.width == 8) {
    compare_tile<uint2>(piece, first);
  } else if (piece.width == 4) {
    compare_tile<unsigned int>(piece, first);
  } else if (piece.width == 2) {
    compare_tile<unsigned short>(piece, first);
  } else {
    compare_tile<unsigned char>(piece, first);
  }
}

/// Eight neighbouring elements in registers.
template <uint32_t kElementSize>
struct Group;

template <>
struct Group<1> {
  using Bits = uint8_t;
  uint2 raw;
  __device__ void load(const std::byte* data) {
    raw = __ldcs(reinterpret_cast<const uint2*>(data));
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
  __device__ void load(const std::byte* data) {
    raw = __ldcs(reinterpret_cast<const uint4*>(data));
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
  __device__ void load(const std::byte* data) {
    low = __ldcs(reinterpret_cast<const uint4*>(data));
    high = __ldcs(reinterpret_cast<const uint4*>(data) + 1);
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

/// Rows of whole groups: one key and one or two wide loads for eight elements. As many units at a
/// time as eight wide loads fetch, so that enough are in flight and registers suffice.
template <uint32_t kElementSize>
__device__ uint64_t digest_whole_groups(const DigestPiece& piece) {
  constexpr uint32_t kAtOnce = kElementSize == 4 ? kUnitsPerThread / 2 : kUnitsPerThread;
  const uint64_t first_group = piece.first_index / kDigestLanes;
  const uint64_t row_groups = piece.canonical_cols / kDigestLanes;
  uint64_t sum = 0;
  UnitWalk walk(piece.grid);
#pragma unroll 1
  for (uint32_t done = 0; done < kUnitsPerThread; done += kAtOnce) {
    Group<kElementSize> groups[kAtOnce];
    uint64_t keys[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i, walk.next()) {
      keys[i] = 0;  // a unit outside the piece adds nothing, whatever its bits
      groups[i] = {};
      if (!walk.inside()) continue;
      const uint64_t element = walk.row() * piece.row_stride + walk.col() * kDigestLanes;
      groups[i].load(piece.data + element * kElementSize);
      keys[i] = group_key(piece.key, first_group + walk.row() * row_groups + walk.col());
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) sum += keys[i] * sum_lanes(groups[i], Lanes());
  }
  return sum;
}

/// The elements of one group that lie in a row [begin, end) of canonical indices; `row` is where
/// index `begin` lies.
template <class Bits, size_t... kLane>
__device__ uint64_t sum_inside(const Bits* row, uint64_t begin, uint64_t end, uint64_t group,
                               std::index_sequence<kLane...>) {
  const auto term = [&](uint64_t lane, uint64_t lane_key) {
    const uint64_t index = group * kDigestLanes + lane;
    if (index < begin || index >= end) return uint64_t{0};
    return lane_key * (uint64_t{row[index - begin]} + 1);
  };
  return (term(kLane, LaneKey<kLane>::value) + ...);
}

/// Rows that begin or end anywhere: element by element, still one key a group.
template <uint32_t kElementSize>
__device__ uint64_t digest_any_rows(const DigestPiece& piece) {
  using Bits = typename Group<kElementSize>::Bits;
  const auto* elements = reinterpret_cast<const Bits*>(piece.data);
  uint64_t sum = 0;
  UnitWalk walk(piece.grid);
  for (uint32_t i = 0; i < kUnitsPerThread && walk.inside(); ++i, walk.next()) {
    const uint64_t begin = piece.first_index + walk.row() * piece.canonical_cols;
    const uint64_t group = begin / kDigestLanes + walk.col();
    sum += group_key(piece.key, group) * sum_inside(elements + walk.row() * piece.row_stride, begin,
                                                    begin + piece.cols, group, Lanes());
  }
  return sum;
}

template <uint32_t kElementSize>
__device__ uint64_t digest_tile(const DigestPiece& piece) {
  return piece.whole_groups ? digest_whole_groups<kElementSize>(piece)
                            : digest_any_rows<kElementSize>(piece);
}

__global__ void __launch_bounds__(kTileThreads)
    digest_kernel(const DigestPiece* pieces, const uint32_t* owners, Atomic* sums) {
  const DigestPiece& piece = pieces[owners[blockIdx.x]];
  uint64_t sum = 0;
  if (piece.element_size == 2) {
    sum = digest_tile<2>(piece);
  } else if (piece.element_size == 4) {
    sum = digest_tile<4>(piece);
  } else {
    sum = digest_tile<1>(piece);
  }
  add_block_sum(sum, sums + piece.slot);
}

}  // namespace

cudaError_t launch_copy(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles,
                        cudaStream_t stream) {
  return launch_tiles(copy_kernel, tiles, stream, pieces, owners);
}

cudaError_t launch_compare(const CopyPiece* pieces, const uint32_t* owners, uint32_t tiles,
                           uint64_t* first, cudaStream_t stream) {
  return launch_tiles(compare_kernel, tiles, stream, pieces, owners,
                      reinterpret_cast<Atomic*>(first));
}

cudaError_t launch_digest(const DigestPiece* pieces, const uint32_t* owners, uint32_t tiles,
                          uint64_t* sums, cudaStream_t stream) {
  return launch_tiles(digest_kernel, tiles, stream, pieces, owners,
                      reinterpret_cast<Atomic*>(sums));
}

}  // namespace awex::cuda
