#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/job.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/report.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/weight_transfer.hpp"
#include "transfer/prove/odd_replicas.hpp"
#include "transfer/prove/tensor_digests.hpp"

namespace awex {

/// Compares what the trainers hold with what inference holds: every rank sums the digests of its
/// own shards on its device, a trainer here and inference as it transfers; one reduction compares
/// whole models.
class WeightVerifier {
 public:
  /// Where inference's weights have come from, for messages.
  enum class Origin : uint8_t { kTransferred, kLoaded };

  /// `trainer_weights` is a trainer rank's own weights memory, of no matter on inference ranks.
  WeightVerifier(Job& job, const HandOver& hand_over, Kernels& kernels,
                 const PlacedMemory& trainer_weights);

  /// A trainer's weights lie here now.
  void place(const PlacedMemory& trainer_weights);
  /// Digests this trainer's weights, which must be resident. Returns the bytes read.
  uint64_t digest();
  /// What an inference rank holds at `weights`, digested once, as `sums` of a trainer.
  [[nodiscard]] std::vector<uint64_t> digest_once(const PlacedMemory& weights);
  /// What a trainer's last `digest` found; nothing on inference ranks.
  [[nodiscard]] std::span<const uint64_t> sums() const;
  /// Compares `mine`, this rank's sums as shard_views numbers them, with those of all ranks: every
  /// replica of every tensor counts by itself. `wrong_element` is what a comparison of bytes found
  /// on this rank, if one was made. Fills `report` as soon as all is compared. Every rank then
  /// throws the same agreed Error(kMismatch) that names the first wrong tensor, if there is one,
  /// and the ranks that hold it, where that can be told; its context has the rank if it is one
  /// alone. Collective.
  void verify(std::span<const uint64_t> mine, const std::optional<WrongElement>& wrong_element,
              std::optional<DigestReport>& report, Origin origin = Origin::kTransferred);

 private:
  /// What a rank found when it compared bytes.
  struct ByteVerdict {
    int32_t is_wrong = 0;
    WrongElement element;
  };

  [[nodiscard]] std::vector<uint64_t> reduce_sums(std::span<const uint64_t> mine);
  [[nodiscard]] DigestReport report_of(const DigestComparison& result) const;
  void refuse_wrong_bytes(const std::vector<ByteVerdict>& verdicts) const;
  void refuse_diverged_replicas(const DigestComparison& result, std::span<const uint64_t> mine);
  void refuse_wrong_replicas(const DigestComparison& result, std::span<const uint64_t> mine,
                             RoleSums trainer, Origin origin);
  /// All that the ranks of `role` hold of a tensor. Collective.
  [[nodiscard]] std::vector<ReplicaSum> gather_replicas(uint32_t tensor, Role role,
                                                        std::span<const uint64_t> mine);
  /// Fails with an error of this message, which gets the ranks that hold wrong bytes. Collective.
  [[noreturn]] void blame(std::string message, const char* hint, const std::vector<int>& ranks,
                          uint32_t tensor) const;

  Job& job_;
  const HandOver& hand_over_;
  const HeldModel& model_;
  Kernels& kernels_;
  Role role_;
  std::vector<HeldReplica> replicas_;  ///< What this rank's sums are of.
  uint64_t bytes_ = 0;
  std::unique_ptr<DigestBatch> batch_;  ///< On a trainer rank.
};

}  // namespace awex
