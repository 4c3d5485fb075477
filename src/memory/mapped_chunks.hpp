#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "memory/chunking.hpp"
#include "memory/owned_chunks.hpp"

namespace awex {

/// What a device may do with memory that is mapped.
enum class MappedAccess : uint8_t { kRead, kReadWrite };

/// Addresses of one range, reserved once and never changed, at which an owner's chunks are mapped
/// as they come and go. The owner may be in this process, which costs no descriptors, or in another
/// one. What is mapped by descriptors keeps its bytes and stays taken when its owner has released
/// it, or has gone, until it is unmapped here as well; what the owner takes later at the same place
/// is other memory, which must be mapped anew. What is not mapped must not be touched. Not thread
/// safe.
class MappedChunks {
 public:
  MappedChunks(const MappedChunks&) = delete;
  MappedChunks& operator=(const MappedChunks&) = delete;
  MappedChunks(MappedChunks&&) = delete;
  MappedChunks& operator=(MappedChunks&&) = delete;
  virtual ~MappedChunks() = default;

  [[nodiscard]] const Chunking& chunking() const { return chunking_; }
  [[nodiscard]] virtual std::byte* data() const = 0;  ///< Device address; fixed for life.
  [[nodiscard]] bool is_mapped(uint64_t chunk) const {
    return mapped_.at(chunk) != Mapped::kNothing;
  }

  /// Maps `count` (> 0) taken chunks of an owner in this process, on the same device and cut as
  /// this range is, from chunk `first` on: all or none. They must be unmapped before they are
  /// released. Many at once cost less than each alone.
  void map(OwnedChunks& owner, uint64_t first, uint64_t count);
  /// Maps chunks of an owner in whatever process from chunk `first` on, one descriptor each: all or
  /// none. The descriptors are this object's from then on. Throws Error(kRuntime) also where
  /// something is mapped already.
  void map(uint64_t first, std::vector<UniqueFd> fds);
  /// The same of all chunks of the range.
  void map(std::vector<UniqueFd> fds);
  /// Unmaps `count` (> 0) mapped chunks: all, or none after a throw. No device work on them may be
  /// in flight.
  void unmap(uint64_t first, uint64_t count);
  /// Unmaps whatever is mapped.
  void unmap();

 protected:
  explicit MappedChunks(Chunking chunking)
      : chunking_(std::move(chunking)), mapped_(chunking_.count(), Mapped::kNothing) {}

  /// The mechanism of the calls above, for chunks that are as they must be. All or none.
  virtual void do_map(OwnedChunks& owner, uint64_t first, uint64_t count) = 0;
  virtual void do_map(uint64_t first, std::vector<UniqueFd> fds) = 0;
  /// `what` names the chunks.
  virtual void do_unmap(uint64_t first, uint64_t count, const std::string& what) = 0;

 private:
  enum class Mapped : uint8_t { kNothing, kOwned, kImported };

  void expect_unmapped(uint64_t first, uint64_t count) const;
  void note(uint64_t first, uint64_t count, Mapped what) noexcept;

  Chunking chunking_;
  std::vector<Mapped> mapped_;  ///< By chunk.
};

}  // namespace awex
