#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "memory/region.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// A named run of whole elements of a region.
struct ProvenRun {
  std::string name;
  uint64_t offset_bytes = 0;
  uint64_t bytes = 0;
  uint32_t element_size = 4;  ///< 1, 2 or 4; offset and bytes are multiples of it.
};

/// Proves that a region's bytes are the same after a journey through host memory as before: digests
/// of its proven runs, taken on the device beside the copies, chunk by chunk before their memory
/// goes and when they are back. Refers to region and kernels, which must outlive it. Its calls
/// throw what the region's do.
class RegionProof {
 public:
  RegionProof(Region& region, std::vector<ProvenRun> runs, Kernels& kernels);

  /// Offloads the region and records the digests of what leaves; `enough_bytes` as in the region.
  /// The next call goes on, also after one that failed; a run-time error where some has left
  /// without a proof (`can_go_on`): resume it first.
  RegionChange offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                       uint64_t enough_bytes = kEverything);
  /// Resumes the region and compares what came back with what was recorded. Throws Error(kMismatch)
  /// that names the first wrong one. Where some has left without a proof a warning says so.
  /// Compares nothing where nothing comes back, as when the region is resident already.
  RegionChange resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Brings a resident region back to what it was when it was offloaded last (Region::bring_back),
  /// and compares it with what was recorded, as `resume`.
  RegionChange bring_back(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Copies a resident region to host memory (Region::back_up) and records the digests.
  RegionChange back_up(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Some of the region leaves without a proof: what was recorded is no longer of all that has
  /// left.
  void forget() { record_.reset(); }
  /// Whether `offload` can prove all that then has left.
  [[nodiscard]] bool can_go_on() const {
    return region_.state() != RegionState::kOffloading || record_;
  }
  [[nodiscard]] std::span<const ProvenRun> runs() const { return runs_; }
  /// The digests of the last offload or copy, by run; none where there is no record of all.
  [[nodiscard]] std::span<const uint64_t> recorded() const {
    return has_all() ? std::span<const uint64_t>(*record_->sums) : std::span<const uint64_t>();
  }
  /// Compares the offloaded bytes in host memory with what was recorded; throws as `resume`, and
  /// where there is no record. Returns the bytes read.
  uint64_t check_backup(ThreadPool& threads) const;

 private:
  /// What has left, or was copied.
  struct Record {
    std::vector<bool> chunks;                   ///< That are digested.
    std::optional<std::vector<uint64_t>> sums;  ///< Of these, by run; else `digests_` has them.
  };

  /// Whether the record is of the whole region: that of a part comes with no whole copy.
  [[nodiscard]] bool has_all() const { return record_ && record_->sums && region_.has_copy(); }
  void begin_record();
  void add_to_record(uint64_t chunk);
  void end_record(const Deadline& deadline, WaitMonitor& monitor);
  [[nodiscard]] std::vector<DigestView> views_of(uint64_t chunk) const;
  void wait(const Deadline& deadline, WaitMonitor& monitor);
  [[nodiscard]] std::span<const uint64_t> finish(const Deadline& deadline, WaitMonitor& monitor);
  [[nodiscard]] uint64_t digest_of_backup(size_t run) const;
  void compare(size_t run, uint64_t digest, const char* where) const;

  Region& region_;
  std::vector<ProvenRun> runs_;
  std::vector<uint64_t> keys_;
  Kernels& kernels_;
  std::unique_ptr<DigestParts> digests_;  ///< A part for each chunk, a sum for each run.
  std::optional<Record> record_;
};

}  // namespace awex
