#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "memory/mapped_chunks.hpp"
#include "memory/owned_chunks.hpp"

/// Ranges of the host device. They keep the contract of CUDA's virtual memory management
/// (cuda_ranges.hpp), so that what breaks it fails here as well:
///  - every chunk that is taken is an object of its own, a memfd. It is free when its owner has
///    released it and nobody maps it or has a descriptor of it any more;
///  - an importer sees the bytes that it has mapped, also after their owner has released them, and
///    never those of a chunk that was taken later at the same place;
///  - what is not mapped faults, and nothing is mapped over a mapping;
///  - fresh memory has any content: here none of its pages is zero.

namespace awex {

/// The pages that a device's ranges really hold, as the kernel counts them. Thread safe.
class HostPages {
 public:
  void add_owned(int fd) {
    change([&] { owned_.insert(fd); });
  }
  void remove_owned(int fd) {
    change([&] { owned_.erase(fd); });
  }
  void add_mapped(int fd) {
    change([&] { mapped_.insert(fd); });
  }
  void remove_mapped(int fd) {
    change([&] { mapped_.erase(fd); });
  }

  /// Of all chunks that are owned here; and of those that are mapped here although their owner has
  /// released them, unless another process that maps them counts them already. Throws
  /// Error(kRuntime).
  [[nodiscard]] uint64_t held_bytes() const;

 private:
  template <class Change>
  void change(const Change& change) {
    const std::lock_guard lock(mutex_);
    change();
  }

  mutable std::mutex mutex_;
  std::set<int> owned_;
  std::set<int> mapped_;
};

/// The owner of a range of `bytes` (> 0), without addresses. `pages` must outlive it.
[[nodiscard]] std::unique_ptr<OwnedChunks> make_host_chunks(std::string name, uint64_t bytes,
                                                            HostPages& pages);

/// Addresses to map a range of this process or of another one of this host. `pages` must outlive
/// them.
[[nodiscard]] std::unique_ptr<MappedChunks> make_host_mapping(std::string name, uint64_t bytes,
                                                              uint64_t chunk_bytes,
                                                              MappedAccess access,
                                                              HostPages& pages);

}  // namespace awex
