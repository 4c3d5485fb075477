#include "memory/host_ranges.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "memory/host_mapping.hpp"

namespace awex {
namespace {

constexpr const char* kMemoryHint =
    "free memory on this node or run fewer ranks on it; a container may have its own limit "
    "(memory.max of its cgroup)";
constexpr const char* kMappingsHint = "see the limit of mappings (sysctl vm.max_map_count)";

/// Marks a chunk whose owner has released it. A seal belongs to the memory, not to a descriptor, so
/// every process that has one sees it; chunks never grow.
constexpr int kReleased = F_SEAL_GROW;

[[noreturn]] void fail(const std::string& attempt, const char* call, const char* hint) {
  throw runtime_error(errno_error(attempt, call, errno).what(), hint);
}

struct stat status_of(int fd, const std::string& attempt) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw errno_error(attempt, "fstat", errno);
  return status;
}

/// Whether the pages of a chunk that is mapped here are this process's to count: its owner counts
/// them until it releases them, then the first to ask of those who map it, as long as it does.
bool is_ours_to_count(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kReleased) == 0) return false;
  struct flock whole {};
  whole.l_type = F_WRLCK;
  return ::fcntl(fd, F_SETLK, &whole) == 0;
}

UniqueFd make_memfd(const std::string& name, const std::string& attempt, uint64_t bytes) {
  // The kernel takes at most 249 bytes of name; it only shows them in /proc.
  UniqueFd fd(
      ::memfd_create(("awex-" + name.substr(0, 200)).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) fail(attempt, "memfd_create", "see the limit of open files (ulimit -n)");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    fail(attempt, "ftruncate", "see the limit of file sizes (ulimit -f)");
  }
  return fd;
}

/// Takes all pages here, where a lack of memory is an error and not a SIGBUS in a later copy.
void take_pages(int fd, uint64_t bytes, const std::string& attempt) {
  int result = 0;
  do {
    result = ::fallocate(fd, 0, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  if (result != 0) fail(attempt, "fallocate", kMemoryHint);
}

/// Owns a chunk's memory, as far as nobody else has it mapped.
class HostChunk {
 public:
  HostChunk(const Chunking& chunking, uint64_t chunk, HostPages& pages) : pages_(&pages) {
    const auto attempt = "take " + chunking.describe(chunk, 1);
    const uint64_t bytes = chunking.held_bytes(chunk, 1);
    fd_ = make_memfd(chunking.name, attempt, bytes);
    take_pages(fd_.get(), bytes, attempt);
    pages_->add_owned(fd_.get());
  }
  HostChunk(HostChunk&&) noexcept = default;
  HostChunk& operator=(HostChunk&&) = delete;
  HostChunk(const HostChunk&) = delete;
  HostChunk& operator=(const HostChunk&) = delete;
  ~HostChunk() {
    if (!fd_.valid()) return;
    pages_->remove_owned(fd_.get());
    ::fcntl(fd_.get(), F_ADD_SEALS, kReleased);
  }

  [[nodiscard]] int fd() const { return fd_.get(); }

  /// To be called with the chunk's mapping before anybody uses it: gives it any content, once.
  void spoil(std::byte* data, uint64_t bytes) {
    if (!std::exchange(fresh_, false)) return;
    // A part of every page suffices to find who counts on zeros.
    constexpr uint64_t kPageBytes = 4096;
    constexpr uint64_t kSpoiltBytes = 64;
    constexpr int kUndefined = 0xcd;
    for (uint64_t at = 0; at < bytes; at += kPageBytes) {
      std::memset(data + at, kUndefined, kSpoiltBytes);
    }
  }
  [[nodiscard]] bool is_fresh() const { return fresh_; }

 private:
  HostPages* pages_;
  UniqueFd fd_;
  bool fresh_ = true;
};

/// Reserved addresses behind which chunks come and go.
class ChunkAddresses {
 public:
  explicit ChunkAddresses(const Chunking& chunking)
      : chunking_(chunking),
        mapping_(reserve_addresses(fmt::format("\"{}\"", chunking.name),
                                   held_bytes_for(chunking.bytes))) {}

  [[nodiscard]] std::byte* data() const { return mapping_.data(); }

  void map(uint64_t chunk, int fd, int protection) const {
    if (::mmap(at(chunk), chunking_.held_bytes(chunk, 1), protection, MAP_SHARED | MAP_FIXED, fd,
               0) == MAP_FAILED) {
      fail("map " + chunking_.describe(chunk, 1), "mmap", kMappingsHint);
    }
  }

  /// Whether chunks are not mapped any more; `errno` tells why they are.
  [[nodiscard]] bool unmap(uint64_t first, uint64_t count) const noexcept {
    return ::mmap(at(first), chunking_.held_bytes(first, count), PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
  }

 private:
  [[nodiscard]] std::byte* at(uint64_t chunk) const noexcept {
    return data() + chunking_.begin(chunk);
  }

  const Chunking& chunking_;
  HostMapping mapping_;
};

class HostOwnedChunks final : public OwnedChunks {
 public:
  HostOwnedChunks(Chunking chunking, HostPages& pages)
      : OwnedChunks(std::move(chunking)), pages_(pages), chunks_(this->chunking().count()) {}

  [[nodiscard]] HostChunk& at(uint64_t chunk) { return chunks_.at(chunk).value(); }

 protected:
  void do_take(uint64_t first, uint64_t count) override {
    std::vector<HostChunk> taken;
    taken.reserve(count);
    for (uint64_t i = 0; i < count; ++i) taken.emplace_back(chunking(), first + i, pages_);
    for (uint64_t i = 0; i < count; ++i) chunks_[first + i].emplace(std::move(taken[i]));
  }

  void do_release(uint64_t first, uint64_t count) override {
    for (uint64_t i = 0; i < count; ++i) chunks_[first + i].reset();
  }

  [[nodiscard]] int do_export(uint64_t chunk) override {
    if (at(chunk).is_fresh()) spoil(chunk);
    return at(chunk).fd();
  }

 private:
  /// What nobody has mapped here.
  void spoil(uint64_t chunk) {
    const uint64_t bytes = chunking().held_bytes(chunk, 1);
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, at(chunk).fd(), 0);
    if (data == MAP_FAILED) fail("map " + chunking().describe(chunk, 1), "mmap", kMappingsHint);
    const HostMapping mapping(static_cast<std::byte*>(data), bytes);
    at(chunk).spoil(mapping.data(), bytes);
  }

  HostPages& pages_;
  std::vector<std::optional<HostChunk>> chunks_;
};

/// Owns the right to another's chunk that is mapped here.
class ImportedChunk {
 public:
  ImportedChunk(UniqueFd fd, HostPages& pages) : pages_(&pages), fd_(std::move(fd)) {
    pages_->add_mapped(fd_.get());
  }
  ImportedChunk(ImportedChunk&&) noexcept = default;
  ImportedChunk& operator=(ImportedChunk&&) = delete;
  ImportedChunk(const ImportedChunk&) = delete;
  ImportedChunk& operator=(const ImportedChunk&) = delete;
  ~ImportedChunk() {
    if (fd_.valid()) pages_->remove_mapped(fd_.get());
  }

 private:
  HostPages* pages_;
  UniqueFd fd_;
};

class HostMappedChunks final : public MappedChunks {
 public:
  HostMappedChunks(Chunking chunking, MappedAccess access, HostPages& pages)
      : MappedChunks(std::move(chunking)),
        access_(access),
        pages_(pages),
        addresses_(this->chunking()),
        imported_(this->chunking().count()) {}

  [[nodiscard]] std::byte* data() const override { return addresses_.data(); }

 protected:
  void do_map(OwnedChunks& owner, uint64_t first, uint64_t count) override {
    auto& owned = dynamic_cast<HostOwnedChunks&>(owner);
    map_all(first, count,
            [&](uint64_t chunk) { addresses_.map(chunk, owned.at(chunk).fd(), protection()); });
    for (uint64_t chunk = first; chunk < first + count; ++chunk) {
      owned.at(chunk).spoil(data() + chunking().begin(chunk), chunking().held_bytes(chunk, 1));
    }
  }

  void do_map(uint64_t first, std::vector<UniqueFd> fds) override {
    std::vector<ImportedChunk> imported;
    imported.reserve(fds.size());
    map_all(first, fds.size(), [&](uint64_t chunk) {
      auto& fd = fds[chunk - first];
      check(chunk, fd.get());
      addresses_.map(chunk, fd.get(), protection());
      imported.emplace_back(std::move(fd), pages_);
    });
    for (uint64_t i = 0; i < fds.size(); ++i) imported_[first + i].emplace(std::move(imported[i]));
  }

  void do_unmap(uint64_t first, uint64_t count, const std::string& what) override {
    if (!addresses_.unmap(first, count)) fail("unmap " + what, "mmap", kMappingsHint);
    for (uint64_t i = 0; i < count; ++i) imported_[first + i].reset();
  }

 private:
  /// Calls map(chunk) for all chunks: all are mapped, or none.
  template <class Map>
  void map_all(uint64_t first, uint64_t count, const Map& map) const {
    try {
      for (uint64_t chunk = first; chunk < first + count; ++chunk) map(chunk);
    } catch (...) {
      static_cast<void>(addresses_.unmap(first, count));
      throw;
    }
  }

  /// A mapping past the end of what the exporter has would kill this process (SIGBUS) when it is
  /// read.
  void check(uint64_t chunk, int fd) const {
    const auto attempt = "import " + chunking().describe(chunk, 1);
    const auto held = static_cast<uint64_t>(status_of(fd, attempt).st_size);
    if (held == chunking().held_bytes(chunk, 1)) return;
    throw runtime_error(fmt::format("cannot {}: the descriptor is of {} bytes", attempt, held),
                        "both ranks must run the same version of awex-colocate");
  }

  [[nodiscard]] int protection() const {
    switch (access_) {
      case MappedAccess::kRead:
        return PROT_READ;
      case MappedAccess::kReadWrite:
        return PROT_READ | PROT_WRITE;
    }
    return PROT_NONE;
  }

  MappedAccess access_;
  HostPages& pages_;
  ChunkAddresses addresses_;
  std::vector<std::optional<ImportedChunk>> imported_;  ///< By chunk.
};

Chunking checked_chunking(Chunking chunking) {
  if (chunking.bytes > 0 && chunking.chunk_bytes > 0 &&
      chunking.chunk_bytes % kPhysicalStepBytes == 0) {
    return chunking;
  }
  throw runtime_error(fmt::format(
      "cannot reserve \"{}\": {} bytes in chunks of {} bytes do not fit steps of {} bytes",
      chunking.name, chunking.bytes, chunking.chunk_bytes, kPhysicalStepBytes));
}

}  // namespace

uint64_t HostPages::held_bytes() const {
  constexpr const char* kAttempt = "count held pages";
  constexpr uint64_t kBlockBytes = 512;  // st_blocks' unit, whatever the page
  const std::lock_guard lock(mutex_);
  std::map<ino_t, uint64_t> bytes_of;
  const auto count = [&](int fd) {
    const auto status = status_of(fd, kAttempt);
    bytes_of[status.st_ino] = static_cast<uint64_t>(status.st_blocks) * kBlockBytes;
  };
  for (const int fd : owned_) count(fd);
  for (const int fd : mapped_) {
    if (is_ours_to_count(fd)) count(fd);
  }
  uint64_t held = 0;
  for (const auto& [inode, bytes] : bytes_of) held += bytes;
  return held;
}

std::unique_ptr<OwnedChunks> make_host_chunks(std::string name, uint64_t bytes, HostPages& pages) {
  return std::make_unique<HostOwnedChunks>(
      checked_chunking({std::move(name), bytes, bytes == 0 ? 0 : chunk_bytes_for(bytes)}), pages);
}

std::unique_ptr<MappedChunks> make_host_mapping(std::string name, uint64_t bytes,
                                                uint64_t chunk_bytes, MappedAccess access,
                                                HostPages& pages) {
  return std::make_unique<HostMappedChunks>(checked_chunking({std::move(name), bytes, chunk_bytes}),
                                            access, pages);
}

}  // namespace awex
