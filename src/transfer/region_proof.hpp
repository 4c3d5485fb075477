#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "memory/region.hpp"
#include "transfer/kernels.hpp"

namespace awex {

/// A named run of whole elements of a region.
struct Segment {
  std::string name;
  uint64_t offset_bytes = 0;
  uint64_t bytes = 0;
  uint32_t element_size = 4;  ///< 1, 2 or 4; offset and bytes are multiples of it.
};

/// Proves that a region's bytes are the same after a journey through host memory as before: digests
/// of its segments, taken on the device beside the copies, chunk by chunk before their memory goes
/// and when they are back. Refers to region and kernels, which must outlive it.
class RegionProof {
 public:
  RegionProof(Region& region, std::vector<Segment> segments, Kernels& kernels);

  /// Begins digests of the region, whose every chunk is to be added once.
  void begin();
  /// Begins to digest a chunk, which must stay resident until one of the calls below returns.
  void add(uint64_t chunk);
  /// Waits for the chunks added so far.
  void wait(const Deadline& deadline, WaitMonitor& monitor);
  /// Waits for the digests and remembers them.
  void finish_record(const Deadline& deadline, WaitMonitor& monitor);
  /// Waits for the digests and compares them with what was recorded. Throws Error(kMismatch) that
  /// names the first wrong segment.
  void finish_check(const Deadline& deadline, WaitMonitor& monitor);

  /// Compares the offloaded bytes in host memory with what was recorded; throws as `finish_check`.
  /// Returns the bytes read.
  uint64_t check_backup(ThreadPool& threads) const;

 private:
  [[nodiscard]] std::vector<DigestView> views_of(uint64_t chunk) const;
  [[nodiscard]] uint64_t digest_of_backup(size_t segment) const;
  void compare(size_t segment, uint64_t digest, const char* where) const;

  Region& region_;
  std::vector<Segment> segments_;
  std::vector<uint64_t> keys_;
  Kernels& kernels_;
  std::unique_ptr<DigestParts> digests_;  ///< A part for each chunk, a slot for each segment.
  std::vector<uint64_t> recorded_;
};

}  // namespace awex
