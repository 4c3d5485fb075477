#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "base/wait.hpp"
#include "memory/chunking.hpp"
#include "memory/numa.hpp"

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

/// A range of device addresses that never changes, backed chunk by chunk with physical memory that
/// comes and goes. Owns addresses and memory, and keeps the one book of which chunks are taken. Not
/// thread safe.
class DeviceRange {
 public:
  DeviceRange(const DeviceRange&) = delete;
  DeviceRange& operator=(const DeviceRange&) = delete;
  DeviceRange(DeviceRange&&) = delete;
  DeviceRange& operator=(DeviceRange&&) = delete;
  virtual ~DeviceRange() = default;

  [[nodiscard]] const Chunking& chunking() const { return chunking_; }
  [[nodiscard]] uint64_t bytes() const { return chunking_.bytes; }  ///< As asked for.
  [[nodiscard]] uint64_t chunk_bytes() const { return chunking_.chunk_bytes; }
  [[nodiscard]] uint64_t chunks() const { return chunking_.count(); }

  [[nodiscard]] virtual std::byte* data() const = 0;  ///< Device address; fixed for life.
  /// Backs `count` (> 0) chunks from chunk `first` on, none of which is taken, with physical
  /// memory, of undefined content on cuda, and makes them accessible: all or none. Many at once
  /// cost less than each alone.
  void take_chunks(uint64_t first, uint64_t count);
  /// Gives the physical memory of `count` (> 0) taken chunks back. No device work on it may be in
  /// flight. After a throw either all of them are taken still, with their bytes, and the call may
  /// be repeated; or none is, and there is nothing to repeat: the device failed to free what no
  /// address leads to any more. `is_taken` tells.
  void release_chunks(uint64_t first, uint64_t count);
  [[nodiscard]] bool is_taken(uint64_t chunk) const { return taken_.at(chunk); }
  /// Physical bytes of the taken chunks.
  [[nodiscard]] uint64_t held_bytes() const;

  /// One descriptor a chunk that another process can map; every chunk must be taken. They stay
  /// valid until the chunk is released; the range owns them.
  [[nodiscard]] std::vector<int> export_fds();

 protected:
  explicit DeviceRange(Chunking chunking)
      : chunking_(std::move(chunking)), taken_(chunking_.count(), false) {}

  /// The mechanism of the calls above, for chunks that are as they must be.
  virtual void do_take(uint64_t first, uint64_t count) = 0;  ///< All or none.
  /// Ends the chunks' use: frees them, or leaves that to `do_free`, which follows. After a throw
  /// they are as they were.
  virtual void do_detach(uint64_t first, uint64_t count) = 0;
  /// Frees what was detached. Tries all of it before it throws.
  virtual void do_free(uint64_t /*first*/, uint64_t /*count*/) {}
  [[nodiscard]] virtual std::vector<int> do_export() = 0;

 private:
  void expect(uint64_t first, uint64_t count, bool taken) const;
  void note(uint64_t first, uint64_t count, bool taken) noexcept;

  Chunking chunking_;
  std::vector<bool> taken_;
};

/// What a device may do with another process's memory that it maps.
enum class MappedAccess : uint8_t { kRead, kReadWrite };

/// Another process's range, mapped here. The address is reserved once and is the same each time it
/// is mapped. What is mapped keeps its bytes and stays taken when its exporter has released it, or
/// has gone, until it is unmapped here as well; what the exporter takes later at the same place is
/// other memory, which must be mapped anew.
class ImportedRange {
 public:
  ImportedRange(const ImportedRange&) = delete;
  ImportedRange& operator=(const ImportedRange&) = delete;
  ImportedRange(ImportedRange&&) = delete;
  ImportedRange& operator=(ImportedRange&&) = delete;
  virtual ~ImportedRange() = default;

  [[nodiscard]] const Chunking& chunking() const { return chunking_; }
  [[nodiscard]] virtual std::byte* data() const = 0;
  /// Maps the exporter's chunks, one descriptor each: all or none. The descriptors are this
  /// range's from then on. Throws Error(kRuntime) also where it is mapped already.
  void map(std::vector<UniqueFd> fds);
  /// Unmaps all chunks. No device work on them may be in flight. Does nothing when not mapped.
  void unmap();

 protected:
  explicit ImportedRange(Chunking chunking) : chunking_(std::move(chunking)) {}

  /// The mechanism of the calls above, in their turn. After a throw of `do_map` nothing is mapped,
  /// after one of `do_unmap` all is.
  virtual void do_map(std::vector<UniqueFd> fds) = 0;
  virtual void do_unmap() = 0;

 private:
  Chunking chunking_;
  bool mapped_ = false;
};

/// Host memory that the device copies from and to at the link's full speed (pinned on cuda). A copy
/// must not span two of them. Freed on destruction.
class HostBlock {
 public:
  HostBlock() = default;
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  HostBlock(HostBlock&&) = delete;
  HostBlock& operator=(HostBlock&&) = delete;
  virtual ~HostBlock() = default;

  [[nodiscard]] virtual std::span<std::byte> bytes() const = 0;
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

  /// Reserves addresses for `bytes` (> 0) and takes no physical memory yet. `name` is for messages.
  [[nodiscard]] virtual std::unique_ptr<DeviceRange> reserve(const std::string& name,
                                                             uint64_t bytes) = 0;
  /// Reserves addresses to map an exporter's range of `bytes` in chunks of `chunk_bytes`, of this
  /// device or of one that it reaches.
  [[nodiscard]] virtual std::unique_ptr<ImportedRange> reserve_import(
      const std::string& name, uint64_t bytes, uint64_t chunk_bytes,
      MappedAccess access = MappedAccess::kRead) = 0;
  [[nodiscard]] virtual std::unique_ptr<HostBlock> allocate_host(uint64_t bytes) = 0;
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

/// CUDA devices that this process can use; 0 without a driver, a GPU or CUDA in the build.
[[nodiscard]] int cuda_device_count();
/// Why there is none, where cuda_device_count is 0: "the driver finds no GPU".
[[nodiscard]] std::string why_no_cuda_device();
/// Whether this binary was built with CUDA.
[[nodiscard]] bool built_with_cuda();
/// Opens CUDA device `index` (VMM and POSIX file descriptor handles are checked for).
[[nodiscard]] std::unique_ptr<Device> make_cuda_device(int index, size_t pool_threads);

}  // namespace awex
