#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "comm/job.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/world.hpp"
#include "engine/engine.hpp"
#include "transfer/move/remote_copies.hpp"
#include "transfer/move/weight_transfer.hpp"
#include "transfer/share/handle_exchange.hpp"

namespace awex {

/// A contiguous part of a trainer's weights, and where it lies in the memory that others map.
struct TrainerSegment {
  uint64_t offset_bytes = 0;  ///< Of its first byte in the layout.
  uint64_t place_bytes = 0;   ///< Of the same in the memory.
  uint64_t bytes = 0;
};

/// What an inference rank does in a cycle, with whatever engine serves there. Calls block until
/// done and return the bytes they moved; they throw on this rank alone.
class InferenceMember {
 public:
  /// All referred objects must outlive it. Throws a request error when the engine does not hold
  /// what its layout says. Where the trainer attaches, `place_trainer` is to follow before anything
  /// else is done with its weights, unless its engine lends them.
  InferenceMember(Job& job, Engine& engine, const World& world, const HandOver& hand_over,
                  Kernels& kernels, RemoteCopies& remote, bool trainer_attaches);

  [[nodiscard]] Region* region(Tag tag) { return engine_.region(tag); }
  [[nodiscard]] uint64_t staging_bytes() const { return remote_.staging_bytes(); }

  /// Where the trainer on this device has its weights, in memory of `bytes`.
  void place_trainer(uint64_t bytes, std::span<const TrainerSegment> segments);
  /// From now on transfers digest what they bring. Again is nothing.
  void prove();
  /// Makes the connections to other inference ranks, and loads what the engine has to load. All
  /// inference ranks together.
  void load();
  /// Takes a tag's memory, if it is not there.
  uint64_t take(Tag tag);
  uint64_t discard(Tag tag);
  /// Maps the weights of the trainer on this device, or opens what its engine lends.
  void map_trainer(ReceivedRange received);
  /// What is lent and stays where it is stays open.
  void unmap_trainer();
  /// LentMemory::number of what is open; 0 for nothing.
  [[nodiscard]] uint64_t borrowed() const { return borrowed_ ? borrowed_->number() : 0; }
  /// The trainer's engine is lost, and with it what it lent.
  void forget_borrowed();
  [[nodiscard]] bool has_mapped() const { return has_mapped_; }
  /// Brings all weights here, to where the engine has them now; the trainer must be mapped. All
  /// inference ranks together.
  uint64_t transfer();
  /// The digests of the last transfer, as shard_views numbers them.
  [[nodiscard]] std::span<const uint64_t> sums() const { return transfer_->sums(); }
  /// Brings them once more and compares. The same conditions.
  [[nodiscard]] std::optional<WrongElement> compare() { return transfer_->compare(); }
  /// Its weights are those of `version` now.
  void commit(uint64_t version);

 private:
  void prepare();
  void prepare_proof();

  Job& job_;
  Engine& engine_;
  RemoteCopies& remote_;
  const HandOver& hand_over_;
  Device& device_;
  uint64_t trainer_bytes_;                         ///< Of the memory that is mapped.
  PlacedMemory trainer_placed_;                    ///< The trainer's weights in it.
  std::unique_ptr<MappedChunks> trainer_weights_;  ///< Null where its engine lends them,
  std::optional<BorrowedMemory> borrowed_;         ///< and what it lends.
  std::unique_ptr<WeightTransfer> transfer_;
  std::set<Tag> untold_;  ///< Taken, or about to be released, which the engine may not know.
  bool has_mapped_ = false;
  bool proves_ = false;
  uint64_t moves_ = 0;  ///< Engine::moves that the transfer is prepared for.
};

}  // namespace awex
