// The host backend: shared host memory (memfd) stands in for a GPU's. Linux only.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "base/unique_fd.hpp"
#include "memory/device.hpp"
#include "memory/host_lent.hpp"
#include "memory/host_mapping.hpp"
#include "memory/host_ranges.hpp"

namespace awex {
namespace {

constexpr uint64_t kHugePageBytes = 2ULL << 20;
constexpr uint64_t kSmallPageBytes = 4096;
/// The device's threads. Serves one caller at a time: host blocks may be prepared in the background
/// while queues copy.
class Workers {
 public:
  explicit Workers(size_t threads) : pool_(threads) {}

  /// Calls work(begin, bytes) for parts of [0, total), each of a huge page's size.
  template <class Work>
  void for_huge_pages(uint64_t total, const Work& work) {
    if (total <= kHugePageBytes) {
      work(uint64_t{0}, total);
      return;
    }
    const std::lock_guard turn(mutex_);
    pool_.for_each(ceil_div(total, kHugePageBytes), [&](size_t page) {
      const uint64_t begin = page * kHugePageBytes;
      work(begin, std::min(kHugePageBytes, total - begin));
    });
  }

 private:
  std::mutex mutex_;
  ThreadPool pool_;
};

class HostMemoryBlock final : public HostBlock {
 public:
  HostMemoryBlock(uint64_t bytes, HostSharing sharing, Workers& workers, const NumaNodes& nodes)
      // One huge page more than asked for, so that the block can begin on one.
      : mapping_(map_private_memory("host memory", bytes + kHugePageBytes)),
        data_(align(mapping_.data())),
        bytes_(bytes) {
    if (sharing == HostSharing::kShared) fd_ = map_shared_memory("host memory", {data_, bytes_});
    // Only advice: a kernel without huge pages refuses it and copies a little slower.
    ::madvise(data_, bytes_, MADV_HUGEPAGE);
    nodes.prefer_for({data_, bytes_});
    if (sharing == HostSharing::kShared) {  // see BlocksAhead
      touch(0, bytes_);
      return;
    }
    workers.for_huge_pages(bytes_, [this](uint64_t begin, uint64_t count) { touch(begin, count); });
  }

  [[nodiscard]] std::span<std::byte> bytes() const override { return {data_, bytes_}; }
  [[nodiscard]] int fd() const override { return fd_.get(); }

 private:
  void touch(uint64_t begin, uint64_t count) {
    for (uint64_t at = begin; at < begin + count; at += kSmallPageBytes) data_[at] = {};
  }

  static std::byte* align(std::byte* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return data + (round_up(address, kHugePageBytes) - address);
  }

  HostMapping mapping_;
  std::byte* data_;
  uint64_t bytes_;
  UniqueFd fd_;  ///< Of a shared block.
};

class HostQueue final : public CopyQueue {
 public:
  explicit HostQueue(Workers& workers) : workers_(workers) {}

  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    workers_.for_huge_pages(bytes, [&](uint64_t begin, uint64_t count) {
      std::memcpy(to + begin, from + begin, count);
    });
  }

  void fill_zero(std::byte* device, uint64_t bytes) override {
    workers_.for_huge_pages(
        bytes, [&](uint64_t begin, uint64_t count) { std::memset(device + begin, 0, count); });
  }

  QueueEvent record() override { return ++events_; }

  /// The work is done already; the job's other ranks may still have something to say.
  void wait(QueueEvent /*event*/, const std::string& /*what*/, const Deadline& /*deadline*/,
            WaitMonitor& monitor) override {
    monitor.poll();
  }

 private:
  Workers& workers_;
  QueueEvent events_ = 0;
};

/// The 16 bytes of the kernel's boot id, which all processes of a node share and no two nodes do.
std::array<uint8_t, 16> read_boot_id() {
  constexpr const char* kFile = "/proc/sys/kernel/random/boot_id";
  std::ifstream file(kFile);
  std::string text;
  std::getline(file, text);
  std::erase(text, '-');
  const bool is_hex = text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (text.size() != 32 || !is_hex) {
    throw runtime_error(fmt::format("cannot tell this node from others: {} holds \"{}\", not a "
                                    "boot id",
                                    kFile, text),
                        "the host backend needs a Linux kernel's /proc mounted");
  }
  std::array<uint8_t, 16> id{};
  for (size_t i = 0; i < id.size(); ++i) {
    id.at(i) = static_cast<uint8_t>(std::stoul(text.substr(2 * i, 2), nullptr, 16));
  }
  return id;
}

DeviceIdentity make_identity(int index) {
  if (index < 0) throw request_error(fmt::format("there is no host device {}", index));
  DeviceIdentity identity{read_boot_id(), index, "host memory"};
  for (size_t i = 0; i < sizeof(index); ++i) {
    identity.uuid.at(i) ^= static_cast<uint8_t>(static_cast<unsigned>(index) >> (8 * i));
  }
  return identity;
}

uint64_t physical_bytes() {
  const auto pages = ::sysconf(_SC_PHYS_PAGES);
  const auto page_bytes = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) throw errno_error("learn the host's memory", "sysconf", errno);
  return static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes);
}

class HostDevice final : public Device {
 public:
  HostDevice(int index, size_t threads, NumaNodes nodes)
      : identity_(make_identity(index)),
        total_bytes_(physical_bytes()),
        nodes_(std::move(nodes)),
        workers_(threads) {}

  [[nodiscard]] BackendKind kind() const override { return BackendKind::kHost; }
  [[nodiscard]] const DeviceIdentity& identity() const override { return identity_; }

  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                         uint64_t bytes) override {
    return make_host_chunks(name, bytes, pages_);
  }

  [[nodiscard]] std::unique_ptr<MappedChunks> reserve_mapping(const std::string& name,
                                                              uint64_t bytes, uint64_t chunk_bytes,
                                                              MappedAccess access) override {
    return make_host_mapping(name, bytes, chunk_bytes, access, pages_);
  }

  [[nodiscard]] std::unique_ptr<OpenedBlock> open_lent(const std::string& name,
                                                       const LentBlock& block,
                                                       const UniqueFd& fd) override {
    return open_host_block(name, block, fd);
  }

  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes,
                                                         HostSharing sharing) override {
    return std::make_unique<HostMemoryBlock>(bytes, sharing, workers_, nodes_);
  }
  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override {
    return std::make_unique<HostQueue>(workers_);
  }

  [[nodiscard]] DeviceMemory memory() const override {
    const uint64_t held = pages_.held_bytes();
    return {total_bytes_ - std::min(held, total_bytes_), total_bytes_};
  }

 private:
  DeviceIdentity identity_;
  uint64_t total_bytes_;
  NumaNodes nodes_;
  Workers workers_;
  HostPages pages_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(int index, size_t pool_threads, NumaNodes nodes) {
  return std::make_unique<HostDevice>(index, pool_threads, std::move(nodes));
}

}  // namespace awex
