#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/thread_pool.hpp"
#include "comm/job.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/world.hpp"
#include "engine/trainer_stand_in.hpp"
#include "memory/warm_up.hpp"
#include "transfer/prove/region_proof.hpp"

namespace awex {

/// What a trainer rank does in a cycle. Calls block until done and return the bytes they moved or
/// read; they throw on this rank alone.
class TrainerMember {
 public:
  TrainerMember(Job& job, const World& world, const HandOver& hand_over, bool with_optimizer,
                MemoryLedger& ledger, Kernels& kernels, CopyQueue& queue);

  [[nodiscard]] Region* region(Tag tag);

  /// Begins to prepare the host memory of these tags in the background, in their order; each is
  /// waited for by its first offload. Does nothing for a tag that it does not hold.
  void warm_up(const std::vector<Tag>& tags);
  /// Gives it up, without waiting.
  void stop_warm_up() {
    if (warm_up_) warm_up_->stop();
  }
  void load();
  /// Give a tag's memory back, and take it again with its bytes. With `proven`, the bytes are
  /// digested on their way out and on their way in; what came back otherwise than it went is an
  /// Error(kMismatch) that names the first wrong tensor.
  uint64_t offload(Tag tag, bool proven);
  uint64_t resume(Tag tag, bool proven);
  /// Compares the bytes in host memory with what was digested; throws as `resume`.
  uint64_t check_backup(Tag tag);
  uint64_t train();

 private:
  RegionProof& proof(Tag tag);
  void finish_warm_up(const Region& region);

  Job& job_;
  Device& device_;
  const WeightSource& source_;
  CopyQueue& queue_;
  ThreadPool threads_;
  TrainerStandIn trainer_;
  std::map<Tag, RegionProof> proofs_;
  std::optional<WarmUp> warm_up_;  ///< After the regions, so that it ends before them.
};

}  // namespace awex
