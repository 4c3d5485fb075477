#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/cuda_check.hpp"
#include "memory/device.hpp"
#include "transfer/kernels/cuda_kernels.hpp"

namespace awex::test {

/// The first GPU with kernels, as tests use it.
struct GpuBench {
  std::unique_ptr<Device> device = make_cuda_device(0, 4);
  std::unique_ptr<Kernels> kernels = make_cuda_kernels(*device);
  NoMonitor monitor;

  void wait() { kernels->wait("the test's work", Deadline(Seconds(60)), monitor); }
};

/// Device memory that starts as a copy of `bytes`. Fetching and writing wait for all device work.
class GpuBuffer {
 public:
  GpuBuffer(Device& device, std::span<const std::byte> bytes)
      : range_(device.reserve("test buffer", std::max<uint64_t>(bytes.size(), 1))) {
    range_->take_chunks(0, range_->chunks());
    write(0, bytes);
  }

  [[nodiscard]] std::byte* data() const { return range_->data(); }

  void write(uint64_t at, std::span<const std::byte> bytes) {
    copy(data() + at, bytes.data(), bytes.size());
  }

  [[nodiscard]] std::vector<std::byte> fetch() const {
    std::vector<std::byte> bytes(range_->bytes());
    copy(bytes.data(), data(), bytes.size());
    return bytes;
  }

 private:
  static void copy(std::byte* to, const std::byte* from, uint64_t bytes) {
    AWEX_CHECK(cudaDeviceSynchronize(), "wait for the device");
    AWEX_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copy a test's {} bytes", bytes);
    AWEX_CHECK(cudaDeviceSynchronize(), "wait for the device");
  }

  std::unique_ptr<DeviceRange> range_;
};

/// A value that names its index, so that a misplaced byte shows where it came from.
inline std::byte named_byte(uint64_t index) {
  return static_cast<std::byte>((index * 0x9e3779b97f4a7c15U) >> 56);
}

inline std::vector<std::byte> named_bytes(uint64_t count, uint64_t first = 0) {
  std::vector<std::byte> bytes(count);
  for (uint64_t i = 0; i < count; ++i) bytes[i] = named_byte(first + i);
  return bytes;
}

}  // namespace awex::test
