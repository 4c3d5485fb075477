#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

/// What of a run lies in one chunk.
struct ProvenPart {
  size_t run = 0;
  uint64_t offset_bytes = 0;  ///< In the region.
  uint64_t bytes = 0;
  uint64_t first_index = 0;  ///< Elements of the run before it.
};

/// Proves that a region's bytes are the same after a journey through host memory as before: digests
/// of its proven runs, taken on the device beside the copies, chunk by chunk before their memory
/// goes and when they are back. Each chunk is proven alone, so that a move that has failed midway
/// is as proven as one that has not. Refers to region and kernels, which must outlive it. Its calls
/// throw what the region's do.
class RegionProof {
 public:
  RegionProof(Region& region, std::vector<ProvenRun> runs, Kernels& kernels);

  /// Offloads the region and records the digests of what leaves; `enough_bytes` and `copied` as in
  /// the region: a chunk that is copied is recorded. The next call goes on, also after one that
  /// failed; a run-time error where some has left without a proof (`can_go_on`): resume it first.
  RegionChange offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                       uint64_t enough_bytes = kEverything, const ChunkCopied& copied = {});
  /// Resumes the region and compares what came back with what was recorded. Throws Error(kMismatch)
  /// that names the first wrong one. Where some has left without a proof a warning says so. What
  /// came back in a call that failed before it was compared, or was wrong, the next one compares,
  /// and so does the next `offload`.
  RegionChange resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Brings a resident region back to what it was when it was offloaded last (Region::bring_back),
  /// and compares it with what was recorded, as `resume`.
  RegionChange bring_back(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Copies a resident region to host memory (Region::back_up) and records the digests.
  RegionChange back_up(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// An offload without a proof begins, or goes on: nothing is recorded of what leaves in it.
  void leave_unproven();
  /// Whether `offload` can prove all that then has left.
  [[nodiscard]] bool can_go_on() const;
  [[nodiscard]] std::span<const ProvenRun> runs() const { return runs_; }
  [[nodiscard]] std::span<const ProvenPart> parts(uint64_t chunk) const {
    return chunks_.at(chunk).parts;
  }
  /// The digests of a chunk's parts when it left, or was copied, last; nothing where that is not
  /// known.
  [[nodiscard]] const std::optional<std::vector<uint64_t>>& recorded(uint64_t chunk) const {
    return chunks_.at(chunk).record;
  }
  /// Compares the offloaded bytes in host memory with what was recorded; throws as `resume`, and
  /// where there is no record of all. Returns the bytes read.
  uint64_t check_backup(ThreadPool& threads) const;

 private:
  struct Chunk {
    std::vector<ProvenPart> parts;
    std::unique_ptr<DigestBatch> digests;  ///< A sum for each part.
    std::optional<std::vector<uint64_t>> record;
    bool is_doubtful = false;  ///< It is back, and was not compared, or was wrong.
  };
  using Move = std::function<RegionChange(const ChunkArrived&)>;

  [[nodiscard]] std::vector<ProvenPart> cut(uint64_t chunk) const;
  [[nodiscard]] std::vector<DigestView> views_of(std::span<const ProvenPart> parts) const;
  void forget();
  void record(uint64_t chunk, const Deadline& deadline, WaitMonitor& monitor);
  RegionChange compare_what_comes(const Move& move, const Deadline& deadline, WaitMonitor& monitor,
                                  const char* where);
  void wait(const Deadline& deadline, WaitMonitor& monitor);
  void compare(uint64_t chunk, std::span<const uint64_t> digests, const char* where) const;

  Region& region_;
  std::vector<ProvenRun> runs_;
  std::vector<uint64_t> keys_;
  Kernels& kernels_;
  std::vector<Chunk> chunks_;
};

}  // namespace awex
