#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/units.hpp"
#include "memory/cuda_check.hpp"

namespace awex {

/// Before other streams' work, or in its turn.
enum class StreamPriority : uint8_t { kUsual, kHigh };

/// Owns a stream that does not synchronise with the legacy default stream.
class CudaStream {
 public:
  explicit CudaStream(StreamPriority priority = StreamPriority::kUsual) {
    int least = 0;
    int greatest = 0;
    AWEX_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest), "learn streams' priorities");
    AWEX_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                            priority == StreamPriority::kHigh ? greatest : least),
               "make a CUDA stream");
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  CudaStream(CudaStream&&) = delete;
  CudaStream& operator=(CudaStream&&) = delete;
  /// Lets work in flight end first, because its memory may go next. Work that waits for other
  /// processes must have been aborted before.
  ~CudaStream() {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Owns an event that keeps no time.
class CudaEvent {
 public:
  CudaEvent() {
    AWEX_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make a CUDA event");
  }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  [[nodiscard]] cudaEvent_t get() const { return event_; }
  /// Stands for what is queued on `stream` so far.
  void record(cudaStream_t stream) const {
    AWEX_CHECK(cudaEventRecord(event_, stream), "record an event on a stream");
  }
  /// Lets later work on `stream` wait for what was recorded last, if anything was.
  void hold_back(cudaStream_t stream) const {
    AWEX_CHECK(cudaStreamWaitEvent(stream, event_, 0), "let a stream wait for another");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Owns `count` values of plain data in device memory, undefined at first; none when 0. Freeing it
/// waits for the device's work.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(uint64_t count) : count_(count) {
    if (count_ == 0) return;
    void* memory = nullptr;
    AWEX_CHECK(cudaMalloc(&memory, bytes()), "take {} of device memory for a batch's descriptors",
               format_bytes(bytes()));
    data_ = static_cast<T*>(memory);
  }
  DeviceArray(std::span<const T> values, cudaStream_t stream) : DeviceArray(values.size()) {
    if (count_ == 0) return;
    // From pageable memory the call returns after `values` have been read.
    AWEX_CHECK(cudaMemcpyAsync(data_, values.data(), bytes(), cudaMemcpyHostToDevice, stream),
               "copy {} of descriptors to the device", format_bytes(bytes()));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray(DeviceArray&&) = delete;
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] uint64_t size() const { return count_; }
  [[nodiscard]] uint64_t bytes() const { return count_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  uint64_t count_;
};

/// Owns `count` values of plain data in pinned host memory, all `value` at first; for results.
template <class T>
class PinnedArray {
 public:
  PinnedArray(uint64_t count, T value) : count_(count) {
    if (count_ == 0) return;
    void* memory = nullptr;
    AWEX_CHECK(cudaMallocHost(&memory, count_ * sizeof(T)), "take {} of pinned host memory",
               format_bytes(count_ * sizeof(T)));
    data_ = static_cast<T*>(memory);
    for (auto& element : values()) element = value;
  }
  PinnedArray(const PinnedArray&) = delete;
  PinnedArray& operator=(const PinnedArray&) = delete;
  PinnedArray(PinnedArray&&) = delete;
  PinnedArray& operator=(PinnedArray&&) = delete;
  ~PinnedArray() { cudaFreeHost(data_); }

  [[nodiscard]] std::span<T> values() const { return {data_, count_}; }

 private:
  T* data_ = nullptr;
  uint64_t count_;
};

}  // namespace awex
