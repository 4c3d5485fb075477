#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "memory/chunking.hpp"

namespace awex {

/// The physical memory of a range, which comes and goes chunk by chunk. Owns it, keeps the one book
/// of which chunks are taken, and lets others have them; it has no addresses. Those that use the
/// memory map it (MappedChunks), in this process or in another. A chunk's memory is free when its
/// owner and everybody who maps it, or has a descriptor of it, have let it go. Not thread safe.
class OwnedChunks {
 public:
  OwnedChunks(const OwnedChunks&) = delete;
  OwnedChunks& operator=(const OwnedChunks&) = delete;
  OwnedChunks(OwnedChunks&&) = delete;
  OwnedChunks& operator=(OwnedChunks&&) = delete;
  virtual ~OwnedChunks() = default;

  [[nodiscard]] const Chunking& chunking() const { return chunking_; }

  /// Takes physical memory, of undefined content, for `count` (> 0) chunks from chunk `first` on,
  /// none of which is taken: all or none.
  void take(uint64_t first, uint64_t count);
  /// Lets `count` (> 0) taken chunks go. After a throw none of them is taken all the same, and
  /// there is nothing to repeat: the device failed to free what nothing leads to any more.
  void release(uint64_t first, uint64_t count);
  [[nodiscard]] bool is_taken(uint64_t chunk) const { return taken_.at(chunk); }
  /// Throws Error(kRuntime) that names the first of these chunks that is not taken.
  void expect_taken(uint64_t first, uint64_t count) const { expect(first, count, true); }
  /// Physical bytes of the taken chunks.
  [[nodiscard]] uint64_t held_bytes() const;

  /// One descriptor a chunk that another process can map; every chunk must be taken. They stay
  /// valid until the chunk is released, and are this object's.
  [[nodiscard]] std::vector<int> export_fds();
  /// The same of one taken chunk.
  [[nodiscard]] int export_fd(uint64_t chunk);

 protected:
  explicit OwnedChunks(Chunking chunking)
      : chunking_(std::move(chunking)), taken_(chunking_.count(), false) {}

  /// The mechanism of the calls above, for chunks that are as they must be.
  virtual void do_take(uint64_t first, uint64_t count) = 0;  ///< All or none.
  /// Frees all that it can before it throws.
  virtual void do_release(uint64_t first, uint64_t count) = 0;
  [[nodiscard]] virtual int do_export(uint64_t chunk) = 0;

 private:
  void expect(uint64_t first, uint64_t count, bool taken) const;
  void note(uint64_t first, uint64_t count, bool taken) noexcept;

  Chunking chunking_;
  std::vector<bool> taken_;
};

}  // namespace awex
