#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/thread_pool.hpp"
#include "comm/job.hpp"
#include "engine/engine.hpp"
#include "memory/warm_up.hpp"
#include "transfer/prove/region_proof.hpp"

namespace awex {

/// What a trainer rank does in a cycle, with whatever engine trains there. Calls block until done
/// and return the bytes they moved or read; they throw on this rank alone.
class TrainerMember {
 public:
  /// All referred objects must outlive it; `threads` check offloaded bytes. Throws a request error
  /// when the engine does not hold what `layout` says.
  TrainerMember(Job& job, TrainerEngine& engine, const RankLayout& layout, Kernels& kernels,
                CopyQueue& queue, ThreadPool& threads);

  [[nodiscard]] Region* region(Tag tag) { return engine_.region(tag); }

  /// Begins to prepare the host memory of these tags in the background, in their order; each is
  /// waited for by its first offload. Does nothing for a tag that it does not hold.
  void warm_up(const std::vector<Tag>& tags);
  /// Gives it up, without waiting.
  void stop_warm_up() {
    if (warm_up_) warm_up_->stop();
  }
  void load() { engine_.load(job_.deadline(), job_); }
  /// Give a tag's memory back, and take it again with its bytes. With `proven`, the bytes are
  /// digested on their way out and on their way in; what came back otherwise than it went is an
  /// Error(kMismatch) that names the first wrong tensor. Nothing for a tag that it does not hold.
  /// An offload ends early when it has given `enough_bytes` (> 0) of device memory back; the next
  /// goes on from there.
  uint64_t offload(Tag tag, bool proven, uint64_t enough_bytes = kEverything);
  /// Whether `offload` can begin, or go on; else `resume` comes first.
  [[nodiscard]] bool can_offload(Tag tag, bool proven);
  uint64_t resume(Tag tag, bool proven);
  /// Compares the bytes in host memory with what was digested; throws as `resume`.
  uint64_t check_backup(Tag tag);
  /// Brings all its memory back to what it was when it was offloaded last, proven. Throws
  /// Error(kMismatch) as `resume`.
  void bring_back(WaitMonitor& monitor);
  uint64_t train();
  /// Trains until `steps` have been taken.
  uint64_t catch_up(uint64_t steps);
  [[nodiscard]] uint64_t steps() const { return engine_.steps(); }
  /// Whether the engine has been told that the tag is released, and not that it is back.
  [[nodiscard]] bool is_released(Tag tag) const { return released_.contains(tag); }

 private:
  void finish_warm_up(const Region& region);
  /// Whether the engine moves its memory of a tag itself.
  [[nodiscard]] bool moves_lent(Tag tag) const {
    return tag == Tag::kWeights && engine_.moves_lent();
  }
  void tell_of_return(Tag tag);
  [[nodiscard]] ChunkDigests digested_runs(Tag tag, uint64_t chunk) const;

  Job& job_;
  TrainerEngine& engine_;
  CopyQueue& queue_;
  ThreadPool& threads_;
  std::map<Tag, RegionProof> proofs_;
  std::set<Tag> released_;
  std::optional<WarmUp> warm_up_;  ///< Ends before the engine's regions do.
};

}  // namespace awex
