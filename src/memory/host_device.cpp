// The host backend: shared host memory (memfd) stands in for a GPU's. Linux only.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "memory/device.hpp"

namespace awex {
namespace {

constexpr uint64_t kHugePageBytes = 2ULL << 20;
constexpr uint64_t kSmallPageBytes = 4096;
constexpr const char* kMemoryHint =
    "free memory on this node or run fewer ranks on it; a container may have its own limit "
    "(memory.max of its cgroup)";

[[noreturn]] void fail(const std::string& attempt, const char* call, const char* hint) {
  throw runtime_error(errno_error(attempt, call, errno).what(), hint);
}

/// Owns a mapping.
class Mapping {
 public:
  Mapping(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Mapping& operator=(Mapping&&) = delete;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  uint64_t bytes_;
};

/// Maps `fd`, or memory of nobody else for -1. No memory is taken until it is touched.
Mapping map_memory(const std::string& what, uint64_t bytes, int protection, int fd) {
  const int kind = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* data = ::mmap(nullptr, bytes, protection, kind | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) {
    fail(fmt::format("reserve {} of addresses for {}", format_bytes(bytes), what), "mmap",
         "see the limit of addresses (ulimit -v)");
  }
  return {static_cast<std::byte*>(data), bytes};
}

/// The device's threads. Serves one caller at a time: host blocks may be prepared in the background
/// while queues copy.
class Workers {
 public:
  explicit Workers(size_t threads) : pool_(threads) {}

  /// Calls work(begin, bytes) for pieces of [0, total) of one huge page's size.
  template <class Work>
  void for_pieces(uint64_t total, const Work& work) {
    if (total <= kHugePageBytes) {
      work(uint64_t{0}, total);
      return;
    }
    const std::lock_guard turn(mutex_);
    pool_.for_each(ceil_div(total, kHugePageBytes), [&](size_t piece) {
      const uint64_t begin = piece * kHugePageBytes;
      work(begin, std::min(kHugePageBytes, total - begin));
    });
  }

 private:
  std::mutex mutex_;
  ThreadPool pool_;
};

/// The descriptors of a device's living ranges, for the kernel's own count of their pages.
using RangeFds = std::vector<int>;

UniqueFd make_memfd(const std::string& name, uint64_t bytes) {
  // The kernel takes at most 249 bytes of name; it only shows them in /proc.
  UniqueFd fd(::memfd_create(("awex-" + name.substr(0, 200)).c_str(), MFD_CLOEXEC));
  if (!fd.valid()) {
    fail(fmt::format("make shared memory for \"{}\" ({})", name, format_bytes(bytes)),
         "memfd_create", "see the limit of open files (ulimit -n)");
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    fail(fmt::format("size shared memory for \"{}\" to {}", name, format_bytes(bytes)), "ftruncate",
         "see the limit of file sizes (ulimit -f)");
  }
  return fd;
}

/// One memfd, mapped once. Chunks that are not taken are holes in it and fault when touched.
class HostRange final : public DeviceRange {
 public:
  HostRange(Chunking chunking, RangeFds& living)
      : DeviceRange(std::move(chunking)),
        fd_(make_memfd(this->chunking().name, held_bytes_for(bytes()))),
        mapping_(map_memory(fmt::format("\"{}\"", this->chunking().name), held_bytes_for(bytes()),
                            PROT_NONE, fd_.get())),
        living_(living) {
    living_.push_back(fd_.get());
  }
  HostRange(const HostRange&) = delete;
  HostRange& operator=(const HostRange&) = delete;
  HostRange(HostRange&&) = delete;
  HostRange& operator=(HostRange&&) = delete;
  ~HostRange() override { std::erase(living_, fd_.get()); }

  [[nodiscard]] std::byte* data() const override { return mapping_.data(); }

 protected:
  void do_take(uint64_t first, uint64_t count) override {
    try {
      // Pages are taken here, where a lack of memory is an error and not a SIGBUS in a later copy.
      if (allocate(first, count, 0) != 0) {
        fail("take " + chunking().describe(first, count), "fallocate", kMemoryHint);
      }
      set_access(first, count, PROT_READ | PROT_WRITE);
    } catch (...) {
      static_cast<void>(allocate(first, count, kFree));  // what was taken before it failed
      throw;
    }
  }

  void do_detach(uint64_t first, uint64_t count) override {
    // The order keeps the bytes reachable when either call fails.
    set_access(first, count, PROT_NONE);
    if (allocate(first, count, kFree) != 0) {
      const int error = errno;
      set_access(first, count, PROT_READ | PROT_WRITE);
      throw errno_error("release " + chunking().describe(first, count), "fallocate", error);
    }
  }

  /// The same descriptor for every chunk: the importer finds chunk i at its own offset in it.
  [[nodiscard]] std::vector<int> do_export() override {
    return std::vector<int>(chunks(), fd_.get());
  }

 private:
  static constexpr int kFree = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

  [[nodiscard]] int allocate(uint64_t first, uint64_t count, int mode) const {
    int result = 0;
    do {
      result = ::fallocate(fd_.get(), mode, static_cast<off_t>(chunking().begin(first)),
                           static_cast<off_t>(chunking().held_bytes(first, count)));
    } while (result != 0 && errno == EINTR);
    return result;
  }

  void set_access(uint64_t first, uint64_t count, int protection) const {
    if (::mprotect(data() + chunking().begin(first), chunking().held_bytes(first, count),
                   protection) != 0) {
      fail("change access to " + chunking().describe(first, count), "mprotect",
           "see the limit of mappings (sysctl vm.max_map_count)");
    }
  }

  UniqueFd fd_;
  Mapping mapping_;
  RangeFds& living_;
};

class HostImport final : public ImportedRange {
 public:
  explicit HostImport(Chunking chunking)
      : chunking_(std::move(chunking)),
        reservation_(map_memory(fmt::format("importing \"{}\"", chunking_.name),
                                held_bytes_for(chunking_.bytes), PROT_NONE, -1)) {}

  [[nodiscard]] std::byte* data() const override { return reservation_.data(); }

  void map(std::vector<UniqueFd> fds) override {
    if (fds.size() != chunking_.count()) {
      throw runtime_error(fmt::format("cannot import \"{}\": got {} descriptors for {} chunks",
                                      chunking_.name, fds.size(), chunking_.count()));
    }
    try {
      for (uint64_t chunk = 0; chunk < chunking_.count(); ++chunk)
        map_chunk(chunk, fds[chunk].get());
    } catch (...) {
      unmap();
      throw;
    }
  }

  void unmap() override {
    if (!std::exchange(mapped_, false)) return;
    if (::mmap(reservation_.data(), reservation_.bytes(), PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
      throw errno_error(fmt::format("unmap the import of \"{}\"", chunking_.name), "mmap", errno);
    }
  }

 private:
  void map_chunk(uint64_t chunk, int fd) {
    const uint64_t begin = chunking_.begin(chunk);
    const uint64_t bytes = chunking_.held_bytes(chunk, 1);
    const auto attempt = "import " + chunking_.describe(chunk, 1);
    struct stat status {};
    if (::fstat(fd, &status) != 0) throw errno_error(attempt, "fstat", errno);
    // A mapping past the file's end would kill this process (SIGBUS) when it is read.
    if (static_cast<uint64_t>(status.st_size) < begin + bytes) {
      throw runtime_error(fmt::format("cannot {}: the descriptor ends at byte {}, not {}", attempt,
                                      status.st_size, begin + bytes),
                          "both ranks must run the same version of awex-colocate");
    }
    mapped_ = true;
    if (::mmap(reservation_.data() + begin, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd,
               static_cast<off_t>(begin)) == MAP_FAILED) {
      throw errno_error(attempt, "mmap", errno);
    }
  }

  Chunking chunking_;
  Mapping reservation_;
  bool mapped_ = false;
};

class HostMemoryBlock final : public HostBlock {
 public:
  HostMemoryBlock(uint64_t bytes, Workers& workers, const NumaNodes& nodes)
      // One huge page more than asked for, so that the block can begin on one.
      : mapping_(map_memory("host memory", bytes + kHugePageBytes, PROT_READ | PROT_WRITE, -1)),
        data_(align(mapping_.data())),
        bytes_(bytes) {
    // Only advice: a kernel without huge pages refuses it and copies a little slower.
    ::madvise(data_, bytes_, MADV_HUGEPAGE);
    nodes.prefer_for({data_, bytes_});
    workers.for_pieces(bytes_, [this](uint64_t begin, uint64_t count) {
      for (uint64_t at = begin; at < begin + count; at += kSmallPageBytes) data_[at] = {};
    });
  }

  [[nodiscard]] std::span<std::byte> bytes() const override { return {data_, bytes_}; }

 private:
  static std::byte* align(std::byte* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return data + (round_up(address, kHugePageBytes) - address);
  }

  Mapping mapping_;
  std::byte* data_;
  uint64_t bytes_;
};

class HostQueue final : public CopyQueue {
 public:
  explicit HostQueue(Workers& workers) : workers_(workers) {}

  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    workers_.for_pieces(bytes, [&](uint64_t begin, uint64_t count) {
      std::memcpy(to + begin, from + begin, count);
    });
  }

  void fill_zero(std::byte* device, uint64_t bytes) override {
    workers_.for_pieces(
        bytes, [&](uint64_t begin, uint64_t count) { std::memset(device + begin, 0, count); });
  }

  Mark mark() override { return ++marks_; }

  /// The work is done already; the job's other ranks may still have something to say.
  void wait(Mark /*mark*/, const std::string& /*what*/, const Deadline& /*deadline*/,
            WaitMonitor& monitor) override {
    monitor.poll();
  }

 private:
  Workers& workers_;
  Mark marks_ = 0;
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

  [[nodiscard]] std::unique_ptr<DeviceRange> reserve(const std::string& name,
                                                     uint64_t bytes) override {
    return std::make_unique<HostRange>(Chunking{name, bytes, chunk_bytes_for(bytes)}, living_);
  }
  [[nodiscard]] std::unique_ptr<ImportedRange> reserve_import(const std::string& name,
                                                              uint64_t bytes,
                                                              uint64_t chunk_bytes) override {
    return std::make_unique<HostImport>(Chunking{name, bytes, chunk_bytes});
  }
  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes) override {
    return std::make_unique<HostMemoryBlock>(bytes, workers_, nodes_);
  }
  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override {
    return std::make_unique<HostQueue>(workers_);
  }

  [[nodiscard]] DeviceMemory memory() const override {
    uint64_t held = 0;
    for (const int fd : living_) {
      struct stat status {};
      if (::fstat(fd, &status) != 0) throw errno_error("count held pages", "fstat", errno);
      held += static_cast<uint64_t>(status.st_blocks) * 512;  // st_blocks' unit, whatever the page
    }
    return {total_bytes_ - std::min(held, total_bytes_), total_bytes_};
  }

 private:
  DeviceIdentity identity_;
  uint64_t total_bytes_;
  NumaNodes nodes_;
  Workers workers_;
  RangeFds living_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(int index, size_t pool_threads, NumaNodes nodes) {
  return std::make_unique<HostDevice>(index, pool_threads, std::move(nodes));
}

}  // namespace awex
