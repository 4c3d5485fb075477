#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "comm/job.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/world.hpp"
#include "engine/inference_stand_in.hpp"
#include "transfer/move/remote_copies.hpp"
#include "transfer/move/weight_transfer.hpp"
#include "transfer/share/handle_exchange.hpp"

namespace awex {

/// What an inference rank does in a cycle. Calls block until done and return the bytes they moved;
/// they throw on this rank alone.
class InferenceMember {
 public:
  /// With `proves`, transfers digest what they bring.
  InferenceMember(Job& job, const World& world, const HandOver& hand_over, uint64_t kv_cache_bytes,
                  bool proves, MemoryLedger& ledger, Kernels& kernels, CopyQueue& queue,
                  RemoteCopies& remote);

  [[nodiscard]] Region* region(Tag tag);
  [[nodiscard]] uint64_t staging_bytes() const { return remote_.staging_bytes(); }

  /// Makes the connections to other inference ranks. All inference ranks together.
  void connect();
  /// Takes a tag's memory; padding of weights is cleared.
  uint64_t take(Tag tag);
  uint64_t discard(Tag tag);
  /// Maps the weights of the trainer on this device.
  void map_trainer(ReceivedRange received);
  void unmap_trainer();
  /// Brings all weights here; the trainer must be mapped. All inference ranks together.
  uint64_t transfer();
  /// The digests of the last transfer, by slot of shard_views.
  [[nodiscard]] std::span<const uint64_t> sums() const { return transfer_->sums(); }
  /// Brings them once more and compares. The same conditions.
  [[nodiscard]] std::optional<WrongElement> compare();

 private:
  Job& job_;
  CopyQueue& queue_;
  RemoteCopies& remote_;
  uint64_t trainer_bytes_;
  InferenceStandIn inference_;
  std::unique_ptr<ImportedRange> trainer_weights_;
  std::unique_ptr<WeightTransfer> transfer_;
};

}  // namespace awex
