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
/// of its segments, taken on the device beside the copies; before they go all at once, so that one
/// small copy brings them to the host between the large ones, and when they come back chunk by
/// chunk. Refers to region and kernels, which must outlive it.
class RegionProof {
 public:
  RegionProof(Region& region, std::vector<Segment> segments, Kernels& kernels);

  /// Begins to digest what the resident region holds, for `finish_record`.
  void begin_record() const;
  /// Waits for these digests and remembers them. From then on the region may change.
  void finish_record(const Deadline& deadline, WaitMonitor& monitor);

  /// Begins to digest a chunk that has come back, for `finish_check`.
  void begin_check(uint64_t chunk);
  /// Compares the chunks that have come back, all of them, with what was recorded. Throws
  /// Error(kMismatch) that names the first wrong segment.
  void finish_check(const Deadline& deadline, WaitMonitor& monitor) const;

  /// Compares the offloaded bytes in host memory with what was recorded; throws as `finish_check`.
  /// Returns the bytes read.
  uint64_t check_backup(ThreadPool& threads) const;

 private:
  /// The parts of segments that lie in a range of the region, and what sums them up.
  struct RangeDigests {
    std::vector<size_t> segments;
    std::unique_ptr<DigestBatch> batch;
  };

  [[nodiscard]] RangeDigests prepare(uint64_t range_begin, uint64_t range_end) const;
  void wait(const Deadline& deadline, WaitMonitor& monitor) const;
  /// Adds what a range's finished batch summed up to its segments' digests.
  static void add(const RangeDigests& range, std::vector<uint64_t>& digests);
  [[nodiscard]] uint64_t digest_of_backup(size_t segment) const;
  void compare(size_t segment, uint64_t digest, const char* where) const;

  Region& region_;
  std::vector<Segment> segments_;
  std::vector<uint64_t> keys_;
  Kernels& kernels_;
  RangeDigests all_;
  std::vector<RangeDigests> chunks_;
  std::vector<uint64_t> recorded_;
};

}  // namespace awex
