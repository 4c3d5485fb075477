#include "transfer/move/cuda_peer_channels.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>

#include "base/checked.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "transfer/kernels/cuda_launch.hpp"
#include "transfer/move/channel_packed_streams.hpp"
#include "transfer/move/cuda_channels.hpp"
#include "transfer/move/cuda_packed_streams.hpp"

namespace awex {
namespace {

class CudaChannels final : public PeerChannels {
 public:
  CudaChannels(Kernels& kernels, uint32_t channels)
      : main_(static_cast<cudaStream_t>(kernels.stream(Stream::kMain))),
        stream_(static_cast<cudaStream_t>(kernels.stream(Stream::kSend))),
        channels_(channels) {}
  CudaChannels(const CudaChannels&) = delete;
  CudaChannels& operator=(const CudaChannels&) = delete;
  CudaChannels(CudaChannels&&) = delete;
  CudaChannels& operator=(CudaChannels&&) = delete;
  ~CudaChannels() override {
    stop();
    cudaStreamSynchronize(stream_);
  }

  void clear(std::byte* memory, uint64_t bytes) override {
    AWEX_CHECK(cudaMemset(memory, 0, bytes), "clear {} of the device", format_bytes(bytes));
    AWEX_CHECK(cudaDeviceSynchronize(), "wait until {} of the device are clear",
               format_bytes(bytes));
  }

  void prepare(const LinkedPackedStreams& sends, const PlacedMemory& trainer,
               const LinkedPackedStreams& receives, const PlacedMemory& own) override {
    packed_streams_ = narrow<uint32_t>(sends.streams.size());
    sends_.emplace(sends.streams, cuda::descriptors_to_send(sends.streams, trainer), sends.links,
                   main_);
    receives_.emplace(receives.streams, cuda::descriptors_to_receive(receives.streams, own),
                      receives.links, main_);
  }

  void copy(ChannelCount base) override {
    AWEX_CHECK(cuda::launch_channel_copy(pass(base), stream_),
               "launch the exchange with {} inference ranks", packed_streams_);
  }

  void compare(ChannelCount base) override {
    AWEX_CHECK(cudaMemsetAsync(differs_.data(), 0xff, differs_.bytes(), stream_),
               "reset the result of a comparison");
    AWEX_CHECK(cuda::launch_channel_compare(pass(base), stream_),
               "launch the comparison with {} inference ranks", packed_streams_);
    AWEX_CHECK(cudaMemcpyAsync(found_.values().data(), differs_.data(), differs_.bytes(),
                               cudaMemcpyDeviceToHost, stream_),
               "fetch the result of a comparison");
  }

  [[nodiscard]] bool is_in_order() const override { return true; }

  [[nodiscard]] bool is_done() override {
    return awex::is_done(cudaStreamQuery(stream_), "cudaStreamQuery", kWhat) &&
           awex::is_done(cudaStreamQuery(main_), "cudaStreamQuery", kWhat);
  }

  void stop() noexcept override { std::atomic_ref(stop_.values().front()).store(1); }
  void go_on() override {
    std::atomic_ref(stop_.values().front()).store(0);
    std::fill(waits_.values().begin(), waits_.values().end(), 0);
  }

  [[nodiscard]] std::vector<uint32_t> late_peers() const override {
    return late_peers_in(waits_.values());
  }

  [[nodiscard]] std::optional<uint64_t> difference() const override {
    const uint64_t position = found_.values().front();
    if (position == cuda::kNoDifference) return std::nullopt;
    return position;
  }

 private:
  static constexpr const char* kWhat = "the transfer of weights";

  [[nodiscard]] cuda::DevicePass pass(ChannelCount base) const {
    return {sends_->data(), receives_->data(),      packed_streams_,       channels_,
            base,           waits_.values().data(), stop_.values().data(), differs_.data()};
  }

  cudaStream_t main_;
  cudaStream_t stream_;
  uint32_t channels_;
  uint32_t packed_streams_ = 0;
  std::optional<cuda::DevicePackedStreams> sends_;
  std::optional<cuda::DevicePackedStreams> receives_;
  PinnedArray<uint32_t> waits_{kChannelWaits, 0};
  PinnedArray<uint32_t> stop_{1, 0};
  DeviceArray<uint64_t> differs_{1};
  PinnedArray<uint64_t> found_{1, cuda::kNoDifference};
};

}  // namespace

uint32_t cuda_channels_at_once(const Device& device) {
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  uint32_t channels = 0;
  AWEX_CHECK(cuda::count_channels(&channels), "learn how many channels gpu {} runs at once",
             device.identity().index);
  return channels;
}

std::unique_ptr<PeerChannels> make_cuda_channels(Kernels& kernels, uint32_t channels) {
  return std::make_unique<CudaChannels>(kernels, channels);
}

}  // namespace awex
