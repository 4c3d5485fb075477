#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "base/error.hpp"
#include "memory/cuda_owners.hpp"
#include "transfer/kernels/cuda_launch.hpp"

namespace awex::cuda {

/// Sums that kernels on `stream` add to, and their copy in host memory.
class DeviceSums {
 public:
  DeviceSums(uint32_t sum_count, cudaStream_t stream)
      : stream_(stream), sums_(sum_count), fetched_(sum_count, uint64_t{0}) {}

  [[nodiscard]] uint64_t* data() const { return sums_.data(); }

  /// Queues that all are zero.
  void reset() {
    if (sums_.size() == 0) return;
    AWEX_CHECK(cudaMemsetAsync(sums_.data(), 0, sums_.bytes(), stream_), "reset {} digests",
               sums_.size());
  }
  /// Queues their way to `fetched`.
  void fetch() {
    AWEX_CHECK(launch_store(sums_.data(), fetched_.values().data(),
                            static_cast<uint32_t>(sums_.size()), stream_),
               "fetch {} digests", sums_.size());
  }
  /// After `fetch` and the stream's work.
  [[nodiscard]] std::span<const uint64_t> fetched() const { return fetched_.values(); }

 private:
  cudaStream_t stream_;
  DeviceArray<uint64_t> sums_;
  PinnedArray<uint64_t> fetched_;
};

}  // namespace awex::cuda
