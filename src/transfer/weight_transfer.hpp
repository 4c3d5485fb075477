#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "transfer/exchange.hpp"
#include "transfer/kernels.hpp"
#include "transfer/plan.hpp"
#include "transfer/rounds.hpp"

namespace awex {

/// The first element in which inference's bytes differ from the trainer's.
struct WrongElement {
  uint32_t tensor = 0;
  uint64_t index = 0;  ///< In the canonical tensor, row-major.
};

/// Bytes of a region, half-open.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

/// Moves the trainers' weights into one inference rank's memory: pieces of its own device straight
/// from the trainer's mapped memory, and beside them pieces of other devices, in rounds of messages
/// of an exchange. Descriptors are made once; addresses never change. Lives on inference ranks
/// only.
class WeightTransfer {
 public:
  /// `trainer_weights` is the mapped weights region of the trainer on this device and
  /// `own_weights` this rank's region: addresses that stay, need not be backed yet. `exchange` must
  /// be a new one. All referred objects must outlive this one.
  WeightTransfer(const Catalogue& catalogue, const Plan& plan, const Placement& placement,
                 uint32_t me, const std::byte* trainer_weights, std::byte* own_weights,
                 Kernels& kernels, Exchange& exchange);

  /// From now on `copy` also digests `views`, into `slots` sums: of this rank's memory, read back
  /// when the bytes are here. What local copies alone write is digested as they go, the rest when
  /// all messages have come.
  void prove(std::span<const DigestView> views, uint32_t slots);

  /// Moves every byte and waits for it. All inference ranks must call it; both regions of a device
  /// must be backed and mapped.
  void copy();
  /// Brings every byte here once more and compares it with what `copy` wrote. The same conditions.
  [[nodiscard]] std::optional<WrongElement> compare();

  /// One sum a slot, of the last `copy`; none if nothing is to be proven.
  [[nodiscard]] std::span<const uint64_t> sums() const { return sums_; }

  /// Bytes that this rank writes.
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  struct ReadyRound {
    std::vector<MergedCopy> received;  ///< What `unpack` writes, copy by copy.
    std::unique_ptr<CopyBatch> pack;
    std::unique_ptr<CopyBatch> unpack;
  };

  void merge_local(const Placement& placement, uint32_t me);
  [[nodiscard]] std::vector<StridedCopy> local_copies() const;
  void prepare_round(const Round& round);
  [[nodiscard]] std::vector<Extent> received_extents() const;
  /// Goes through all rounds; what arrives in one is unpacked by `unpack`.
  void exchange_all(void (CopyBatch::*unpack)());

  /// What a comparison found in a batch of these copies.
  [[nodiscard]] std::optional<WrongElement> wrong_element(
      const CopyBatch& batch, const std::vector<MergedCopy>& copies) const;
  /// The element that a byte of this rank's region belongs to.
  [[nodiscard]] WrongElement element_at(uint64_t offset) const;

  const Catalogue& catalogue_;
  const std::byte* trainer_weights_;
  std::byte* own_weights_;
  Kernels& kernels_;
  Exchange& exchange_;
  std::vector<Piece> pieces_;  ///< All that this rank receives.
  std::vector<MergedCopy> local_;
  std::unique_ptr<CopyBatch> plain_;     ///< The local copies.
  std::unique_ptr<DigestBatch> proven_;  ///< The same with digests, if they are to be proven.
  std::unique_ptr<DigestBatch> late_;    ///< Digests of what messages write, if they do.
  std::vector<uint64_t> sums_;
  std::vector<ReadyRound> rounds_;
  uint64_t bytes_ = 0;
};

}  // namespace awex
