#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/wait.hpp"
#include "memory/chunking.hpp"
#include "memory/lent_memory.hpp"
#include "memory/mapped_chunks.hpp"
#include "memory/numa.hpp"
#include "memory/owned_chunks.hpp"

namespace awex {

enum class BackendKind : uint8_t { kHost, kCuda };

/// "host" or "cuda".
[[nodiscard]] const char* backend_name(BackendKind kind);

/// What identifies a device over processes: its UUID, never its index.
struct DeviceIdentity {
  std::array<uint8_t, 16> uuid{};
  int index = 0;     ///< In this process, for messages.
  std::string name;  ///< "NVIDIA H100 80GB HBM3", "host memory".
};

struct DeviceMemory {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

/// Device addresses that never change, backed chunk by chunk with physical memory that comes and
/// goes: chunks of which the owner and the one who maps them are both here. Not thread safe.
class DeviceRange {
 public:
  /// Both are cut alike, and of one device; nothing is taken or mapped yet.
  DeviceRange(std::unique_ptr<OwnedChunks> owned, std::unique_ptr<MappedChunks> mapped)
      : owned_(std::move(owned)), mapped_(std::move(mapped)) {}

  [[nodiscard]] const Chunking& chunking() const { return owned_->chunking(); }
  [[nodiscard]] uint64_t bytes() const { return chunking().bytes; }  ///< As asked for.
  [[nodiscard]] uint64_t chunk_bytes() const { return chunking().chunk_bytes; }
  [[nodiscard]] uint64_t chunks() const { return chunking().count(); }

  [[nodiscard]] std::byte* data() const { return mapped_->data(); }  ///< Fixed for life.
  /// Who has them on the books, and exports them.
  [[nodiscard]] OwnedChunks& owned() { return *owned_; }
  /// Backs `count` (> 0) chunks from chunk `first` on, none of which is taken, with physical
  /// memory, of undefined content on cuda, and makes them accessible: all or none. Many at once
  /// cost less than each alone.
  void take_chunks(uint64_t first, uint64_t count);
  /// Gives the physical memory of `count` (> 0) taken chunks back. No device work on it may be in
  /// flight. After a throw either all of them are taken still, with their bytes, and the call may
  /// be repeated; or none is, and there is nothing to repeat: the device failed to free what no
  /// address leads to any more. `is_taken` tells.
  void release_chunks(uint64_t first, uint64_t count);
  [[nodiscard]] bool is_taken(uint64_t chunk) const { return owned_->is_taken(chunk); }
  /// Physical bytes of the taken chunks.
  [[nodiscard]] uint64_t held_bytes() const { return owned_->held_bytes(); }
  /// See OwnedChunks.
  [[nodiscard]] std::vector<int> export_fds() { return owned_->export_fds(); }

 private:
  std::unique_ptr<OwnedChunks> owned_;  ///< Outlives the mapping.
  std::unique_ptr<MappedChunks> mapped_;
};

/// Whether other processes can map host memory. What they cannot is faster to make: the kernel has
/// huge pages for it.
enum class HostSharing : uint8_t { kPrivate, kShared };

/// Host memory that the device copies from and to at the link's full speed (pinned on cuda). A copy
/// must not span two of them. Freed on destruction, unless
/// another process has its descriptor.
class HostBlock {
 public:
  HostBlock() = default;
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  HostBlock(HostBlock&&) = delete;
  HostBlock& operator=(HostBlock&&) = delete;
  virtual ~HostBlock() = default;

  [[nodiscard]] virtual std::span<std::byte> bytes() const = 0;
  /// A descriptor that another process can map it by, from the start on; -1 for a private one.
  [[nodiscard]] virtual int fd() const = 0;
};

/// A point in a queue's work, to wait for. Numbers grow by one with every event of that queue.
using QueueEvent = uint64_t;

/// Copies in order on one device (a CUDA stream). The host backend has done the work when a call
/// returns. Callers keep memory alive and backed until they have waited for it.
class CopyQueue {
 public:
  CopyQueue() = default;
  CopyQueue(const CopyQueue&) = delete;
  CopyQueue& operator=(const CopyQueue&) = delete;
  CopyQueue(CopyQueue&&) = delete;
  CopyQueue& operator=(CopyQueue&&) = delete;
  virtual ~CopyQueue() = default;

  /// Copies between any two addresses, host (in a HostBlock) or device, asynchronously on cuda.
  virtual void copy(std::byte* to, const std::byte* from, uint64_t bytes) = 0;
  virtual void fill_zero(std::byte* device, uint64_t bytes) = 0;
  /// An event behind the work queued so far.
  virtual QueueEvent record() = 0;
  /// Returns when the work before `event` is done. Polls; throws Error(kDeadline) that says
  /// "<what>" when the deadline passes, and whatever `monitor` throws.
  virtual void wait(QueueEvent event, const std::string& what, const Deadline& deadline,
                    WaitMonitor& monitor) = 0;
  /// Waits for all work queued so far.
  void finish(const std::string& what, const Deadline& deadline, WaitMonitor& monitor) {
    wait(record(), what, deadline, monitor);
  }
};

/// One GPU (or its stand-in in host memory) as one rank uses it. Every object it makes must be
/// destroyed before it. Calls throw Error(kRuntime) with the call, the symbol and the number.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  Device(Device&&) = delete;
  Device& operator=(Device&&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual BackendKind kind() const = 0;
  [[nodiscard]] virtual const DeviceIdentity& identity() const = 0;

  /// What may own physical memory for a range of `bytes` (> 0); takes none yet. `name` is for
  /// messages, here and below.
  [[nodiscard]] virtual std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                                 uint64_t bytes) = 0;
  /// Reserves addresses to map an owner's range of `bytes` in chunks of `chunk_bytes`, of this
  /// device or of one that it reaches.
  [[nodiscard]] virtual std::unique_ptr<MappedChunks> reserve_mapping(
      const std::string& name, uint64_t bytes, uint64_t chunk_bytes,
      MappedAccess access = MappedAccess::kRead) = 0;
  /// Opens a block that another process lends, on this device, for reading; `fd` stays the
  /// caller's.
  [[nodiscard]] virtual std::unique_ptr<OpenedBlock> open_lent(const std::string& name,
                                                               const LentBlock& block,
                                                               const UniqueFd& fd) = 0;
  /// Reserves addresses for `bytes` (> 0) and takes no physical memory yet.
  [[nodiscard]] std::unique_ptr<DeviceRange> reserve(const std::string& name, uint64_t bytes);
  [[nodiscard]] virtual std::unique_ptr<HostBlock> allocate_host(
      uint64_t bytes, HostSharing sharing = HostSharing::kPrivate) = 0;
  [[nodiscard]] virtual std::unique_ptr<CopyQueue> make_queue() = 0;

  /// Free and total memory of the device as the driver tells it. For `host`: the machine's memory,
  /// less the pages that this process's ranges really hold, as the kernel counts them. What is
  /// mapped of another process is that one's until it releases it.
  [[nodiscard]] virtual DeviceMemory memory() const = 0;
};

/// Host memory standing in for device number `index` of this node; `pool_threads` copy threads. Its
/// host blocks lie where `nodes` says.
[[nodiscard]] std::unique_ptr<Device> make_host_device(int index, size_t pool_threads,
                                                       NumaNodes nodes = {});

/// Whether this binary was built with CUDA.
[[nodiscard]] bool built_with_cuda();
/// Opens CUDA device `index` (VMM and POSIX file descriptor handles are checked for).
[[nodiscard]] std::unique_ptr<Device> make_cuda_device(int index, size_t pool_threads);

}  // namespace awex
