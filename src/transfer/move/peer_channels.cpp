#include "transfer/move/peer_channels.hpp"

#include "base/error.hpp"
#include "transfer/move/host_channels.hpp"
#if AWEX_WITH_CUDA
#include "memory/cuda_ranges.hpp"
#include "transfer/move/cuda_peer_channels.hpp"
#endif

namespace awex {
namespace {

[[noreturn]] void fail_without_cuda() {
  throw runtime_error("a GPU has no channels in a binary that was built without CUDA",
                      "this is a fault of awex-colocate: please report it");
}

}  // namespace

uint32_t channels_at_once(const Device& device) {
  switch (device.kind()) {
    case BackendKind::kHost:
      return kHostChannels;
    case BackendKind::kCuda:
#if AWEX_WITH_CUDA
      return cuda_channels_at_once(device);
#else
      break;
#endif
  }
  fail_without_cuda();
}

bool reaches(const Device& device, [[maybe_unused]] const DeviceIdentity& other) {
  switch (device.kind()) {
    case BackendKind::kHost:
      return true;
    case BackendKind::kCuda:
#if AWEX_WITH_CUDA
      return reaches_device(device.identity().index, other);
#else
      break;
#endif
  }
  fail_without_cuda();
}

std::unique_ptr<PeerChannels> make_peer_channels(const Device& device,
                                                 [[maybe_unused]] Kernels& kernels,
                                                 uint32_t channels) {
  switch (device.kind()) {
    case BackendKind::kHost:
      return make_host_channels(channels);
    case BackendKind::kCuda:
#if AWEX_WITH_CUDA
      return make_cuda_channels(kernels, channels);
#else
      break;
#endif
  }
  fail_without_cuda();
}

}  // namespace awex
