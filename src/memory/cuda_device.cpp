// The cuda backend: memory by CUDA's virtual memory management, copies on a stream.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <deque>
#include <utility>
#include <vector>

#include "memory/cuda_lent.hpp"
#include "memory/cuda_owners.hpp"
#include "memory/cuda_ranges.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"
#include "memory/host_memory.hpp"

namespace awex {
namespace {

class CudaQueue final : public CopyQueue {
 public:
  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    AWEX_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_.get()),
               "queue a copy of {} from {} to {}", format_bytes(bytes), fmt::ptr(from),
               fmt::ptr(to));
  }

  void fill_zero(std::byte* device, uint64_t bytes) override {
    AWEX_CHECK(cudaMemsetAsync(device, 0, bytes, stream_.get()), "queue zeroing of {} at {}",
               format_bytes(bytes), fmt::ptr(device));
  }

  QueueEvent record() override {
    if (spare_.empty()) spare_.emplace_back();
    spare_.back().record(stream_.get());
    pending_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    return done_ + pending_.size();
  }

  void wait(QueueEvent event, const std::string& what, const Deadline& deadline,
            WaitMonitor& monitor) override {
    if (event <= done_) return;
    if (event > done_ + pending_.size()) {
      throw runtime_error(fmt::format("cannot wait for {}: event {} was never made", what, event));
    }
    const auto cuda_event = pending_[event - done_ - 1].get();
    wait_until([&] { return is_done(cudaEventQuery(cuda_event), "cudaEventQuery", what); }, what,
               deadline, monitor);
    for (; done_ < event; ++done_) {
      spare_.push_back(std::move(pending_.front()));
      pending_.pop_front();
    }
  }

 private:
  CudaStream stream_;
  QueueEvent done_ = 0;            ///< Events up to this one are known to be done.
  std::deque<CudaEvent> pending_;  ///< Of those after it, oldest first.
  std::vector<CudaEvent> spare_;
};

/// Owns the pinning of host memory for all devices of this process. NVIDIA's kernel module takes
/// hold of the pages itself and does not count them against the limit of locked memory (its
/// kernel-open/nvidia/os-mlock.c), which is therefore no reason to refuse a run beforehand.
class Registration {
 public:
  explicit Registration(std::span<std::byte> memory) : data_(memory.data()) {
    AWEX_CHECK(cudaHostRegister(data_, memory.size(), cudaHostRegisterPortable),
               "pin {} of host memory (see the node's free memory, memory.max of the cgroup, and, "
               "for drivers that count it, the limit of locked memory, which is {}: ulimit -l)",
               format_bytes(memory.size()), describe_locked_memory_limit());
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  Registration(Registration&&) = delete;
  Registration& operator=(Registration&&) = delete;
  ~Registration() { cudaHostUnregister(data_); }

 private:
  std::byte* data_;
};

/// Host memory in touched huge pages, pinned afterwards: an order of magnitude faster to get than
/// what cudaHostAlloc gives.
class PinnedBlock final : public HostBlock {
 public:
  explicit PinnedBlock(std::unique_ptr<HostBlock> memory)
      : memory_(std::move(memory)), registration_(memory_->bytes()) {}

  [[nodiscard]] std::span<std::byte> bytes() const override { return memory_->bytes(); }
  [[nodiscard]] int fd() const override { return memory_->fd(); }

 private:
  std::unique_ptr<HostBlock> memory_;
  Registration registration_;
};

/// Opens the device's primary context and makes it the calling thread's.
void make_current(int index) { AWEX_CHECK(cudaSetDevice(index), "open gpu {}", index); }

/// What the driver sets aside for threads' stacks is half of a context, 264 MiB on an H200, and
/// this product's kernels need none.
void take_no_stack(int index) {
  AWEX_CHECK(cudaDeviceSetLimit(cudaLimitStackSize, 0), "take no stack on gpu {}", index);
}

DeviceIdentity identify(int index) {
  cudaDeviceProp properties{};
  AWEX_CHECK(cudaGetDeviceProperties(&properties, index), "learn what gpu {} is", index);
  DeviceIdentity identity{{}, index, properties.name};
  static_assert(sizeof(properties.uuid.bytes) == sizeof(identity.uuid));
  std::transform(std::begin(properties.uuid.bytes), std::end(properties.uuid.bytes),
                 identity.uuid.begin(), [](char byte) { return static_cast<uint8_t>(byte); });
  return identity;
}

/// The NUMA nodes at whose memory the GPU's link ends.
NumaNodes nodes_near(int index) {
  std::array<char, 32> bus_id{};
  AWEX_CHECK(cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()), index),
             "learn the PCI address of gpu {}", index);
  return NumaNodes::near_pci(bus_id.data());
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, size_t pool_threads)
      : identity_(identify(index)),
        source_(inspect_cuda_memory(index, identity_.name)),
        host_(make_host_device(index, pool_threads, nodes_near(index))) {}

  [[nodiscard]] BackendKind kind() const override { return BackendKind::kCuda; }
  [[nodiscard]] const DeviceIdentity& identity() const override { return identity_; }

  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                         uint64_t bytes) override {
    return make_cuda_chunks(source_, name, bytes);
  }

  [[nodiscard]] std::unique_ptr<MappedChunks> reserve_mapping(const std::string& name,
                                                              uint64_t bytes, uint64_t chunk_bytes,
                                                              MappedAccess access) override {
    return make_cuda_mapping(source_, name, bytes, chunk_bytes, access);
  }

  [[nodiscard]] std::unique_ptr<OpenedBlock> open_lent(const std::string& name,
                                                       const LentBlock& block,
                                                       const UniqueFd& fd) override {
    return open_cuda_block(source_, name, block, fd);
  }

  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes,
                                                         HostSharing sharing) override {
    make_current(identity_.index);  // host memory may be prepared on a thread of its own
    return std::make_unique<PinnedBlock>(host_->allocate_host(bytes, sharing));
  }

  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override {
    make_current(identity_.index);
    return std::make_unique<CudaQueue>();
  }

  [[nodiscard]] DeviceMemory memory() const override {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    AWEX_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes), "learn the free memory of gpu {}",
               identity_.index);
    return {free_bytes, total_bytes};
  }

 private:
  DeviceIdentity identity_;
  CudaMemorySource source_;
  std::unique_ptr<Device> host_;
};

/// Whether a failed count means that this machine simply has no usable GPU.
}  // namespace

bool built_with_cuda() { return true; }

std::unique_ptr<Device> make_cuda_device(int index, size_t pool_threads) {
  const int count = cuda_device_count();
  if (index < 0 || index >= count) {
    throw request_error(
        fmt::format("cannot open gpu {}: this process sees {} GPUs", index, count),
        count == 0 ? "nvidia-smi must list a GPU; --backend host runs the cycle without one"
                   : "check CUDA_VISIBLE_DEVICES and the number of ranks on this node");
  }
  make_current(index);
  take_no_stack(index);
  return std::make_unique<CudaDevice>(index, pool_threads);
}

}  // namespace awex
