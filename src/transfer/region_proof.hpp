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
/// of its segments, taken on the device. Refers to region and kernels, which must outlive it.
class RegionProof {
 public:
  RegionProof(Region& region, std::vector<Segment> segments, Kernels& kernels);

  /// Remembers the digests of what the resident region holds. Returns the bytes read.
  uint64_t record(const Deadline& deadline, WaitMonitor& monitor);
  /// Compares the resident region with what was recorded. Throws Error(kMismatch) that names the
  /// first wrong segment. Returns the bytes read.
  uint64_t check(const Deadline& deadline, WaitMonitor& monitor) const;
  /// Compares the offloaded bytes in host memory with what was recorded; throws the same.
  uint64_t check_backup(ThreadPool& threads) const;

 private:
  [[nodiscard]] uint64_t total_bytes() const;
  [[nodiscard]] uint64_t digest_of_backup(size_t segment) const;
  void compare(size_t segment, uint64_t digest, const char* where) const;

  Region& region_;
  std::vector<Segment> segments_;
  std::vector<uint64_t> keys_;
  Kernels& kernels_;
  std::unique_ptr<DigestBatch> batch_;
  std::vector<uint64_t> recorded_;
};

}  // namespace awex
