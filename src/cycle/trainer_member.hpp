#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/thread_pool.hpp"
#include "comm/job.hpp"
#include "cycle/setup.hpp"
#include "engine/trainer_stand_in.hpp"
#include "transfer/region_proof.hpp"

namespace awex {

/// What a trainer rank does in a cycle. Calls block until done and return the bytes they moved or
/// read; they throw on this rank alone.
class TrainerMember {
 public:
  TrainerMember(Job& job, const Setup& setup, bool with_optimizer, MemoryLedger& ledger,
                Kernels& kernels, CopyQueue& queue);

  [[nodiscard]] Region* region(Tag tag);

  void load();
  /// Remembers the digests of a tag's resident bytes, for `check` and `check_backup`.
  uint64_t record(Tag tag);
  uint64_t offload(Tag tag);
  uint64_t resume(Tag tag);
  /// Compare with what was recorded; throw Error(kMismatch) that names the first wrong tensor.
  uint64_t check(Tag tag);
  uint64_t check_backup(Tag tag);
  uint64_t train();

 private:
  RegionProof& proof(Tag tag);

  Job& job_;
  const Setup& setup_;
  CopyQueue& queue_;
  ThreadPool threads_;
  TrainerStandIn trainer_;
  std::map<Tag, RegionProof> proofs_;
};

}  // namespace awex
