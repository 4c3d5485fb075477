// Compiled with -fmad=false: see engine/adamw_math.hpp.
#include "engine/adamw_math.hpp"
#include "engine/cuda_adamw_launch.hpp"
#include "model/convert.hpp"
#include "transfer/kernels/cuda_tiles.cuh"

namespace awex::cuda {
namespace {

/// Neighbouring values that one access loads or stores.
template <class Value, uint32_t kCount>
struct alignas(sizeof(Value) * kCount) Pack {
  Value values[kCount];
};

template <uint32_t kCount, class Value>
__device__ Pack<Value, kCount> load(const Value* from) {
  return *reinterpret_cast<const Pack<Value, kCount>*>(from);
}

template <uint32_t kCount, class Value>
__device__ void store(Value* to, const Pack<Value, kCount>& pack) {
  *reinterpret_cast<Pack<Value, kCount>*>(to) = pack;
}

/// Calls work(position in the arrays, canonical index) for each of this thread's units.
template <uint32_t kCount, class Work>
__device__ void for_each_unit(const AdamWDescriptor& descriptor, const Work& work) {
  UnitWalk walk(descriptor.grid);
  for (uint32_t i = 0; i < kUnitsPerThread && walk.inside(); ++i, walk.next()) {
    const uint64_t col = walk.col() * kCount;
    work(walk.row() * descriptor.row_stride + col,
         descriptor.first_index + walk.row() * descriptor.canonical_cols + col);
  }
}

template <class Element, uint32_t kCount>
__device__ void initialise_tile(const AdamWDescriptor& descriptor) {
  using Bits = typename Element::Bits;
  const auto* weights = reinterpret_cast<const Bits*>(descriptor.weights);
  for_each_unit<kCount>(descriptor, [&](uint64_t at, uint64_t /*index*/) {
    const auto bits = load<kCount>(weights + at);
    Pack<float, kCount> master;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) master.values[i] = Element::value(bits.values[i]);
    store(descriptor.master + at, master);
    store(descriptor.exp_avg + at, Pack<float, kCount>{});
    store(descriptor.exp_avg_sq + at, Pack<float, kCount>{});
  });
}

template <class Element, uint32_t kCount>
__device__ void step_tile(const AdamWDescriptor& descriptor, const AdamWStep& step) {
  using Bits = typename Element::Bits;
  auto* weights = reinterpret_cast<Bits*>(descriptor.weights);
  for_each_unit<kCount>(descriptor, [&](uint64_t at, uint64_t index) {
    auto master = load<kCount>(descriptor.master + at);
    auto exp_avg = load<kCount>(descriptor.exp_avg + at);
    auto exp_avg_sq = load<kCount>(descriptor.exp_avg_sq + at);
    Pack<Bits, kCount> bits;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      AdamWElement element{master.values[i], exp_avg.values[i], exp_avg_sq.values[i]};
      update_moments(step, generated_gradient(step.gradient_seed, descriptor.key, index + i),
                     element);
      update_master(step, __fsqrt_rn(unbiased_variance(step, element)), element);
      master.values[i] = element.master;
      exp_avg.values[i] = element.exp_avg;
      exp_avg_sq.values[i] = element.exp_avg_sq;
      bits.values[i] = Element::bits(element.master);
    }
    store(descriptor.master + at, master);
    store(descriptor.exp_avg + at, exp_avg);
    store(descriptor.exp_avg_sq + at, exp_avg_sq);
    store(weights + at, bits);
  });
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads)
    initialise_kernel(const AdamWDescriptor* descriptors, const uint32_t* owners) {
  const AdamWDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  if (descriptor.fours) {
    initialise_tile<Element, 4>(descriptor);
  } else {
    initialise_tile<Element, 1>(descriptor);
  }
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads)
    step_kernel(const AdamWDescriptor* descriptors, const uint32_t* owners, AdamWStep step) {
  const AdamWDescriptor& descriptor = descriptors[owners[blockIdx.x]];
  if (descriptor.fours) {
    step_tile<Element, 4>(descriptor, step);
  } else {
    step_tile<Element, 1>(descriptor, step);
  }
}

/// Calls launch(an element type of model/convert.hpp).
template <class Launch>
cudaError_t with_element(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kBf16:
      return launch(Bf16Element());
    case DType::kF16:
      return launch(F16Element());
    case DType::kF32:
      return launch(F32Element());
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_adamw_initialise(DType dtype, const AdamWDescriptor* descriptors,
                                    const uint32_t* owners, uint32_t tiles, cudaStream_t stream) {
  return with_element(dtype, [&](auto element) {
    return launch_tiles(initialise_kernel<decltype(element)>, tiles, stream, descriptors, owners);
  });
}

cudaError_t launch_adamw_step(DType dtype, const AdamWDescriptor* descriptors,
                              const uint32_t* owners, uint32_t tiles, const AdamWStep& step,
                              cudaStream_t stream) {
  return with_element(dtype, [&](auto element) {
    return launch_tiles(step_kernel<decltype(element)>, tiles, stream, descriptors, owners, step);
  });
}

}  // namespace awex::cuda
