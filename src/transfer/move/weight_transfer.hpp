#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "memory/placed_memory.hpp"
#include "plan/exchanged_copies.hpp"
#include "plan/plan.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {

/// The first element in which inference's bytes differ from the trainer's.
struct WrongElement {
  uint32_t tensor = 0;
  uint64_t index = 0;  ///< In the canonical tensor, row-major.
};

/// Addresses, half-open.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

/// Moves the trainers' weights into one inference rank's memory: pieces of its own device straight
/// from the trainer's mapped memory, and beside them pieces of other devices, by remote copies.
/// Descriptors are made once, and again when an engine's memory has moved. Lives on inference ranks
/// only.
class WeightTransfer {
 public:
  /// `remote` must be new. All referred objects must outlive this one.
  WeightTransfer(const Catalogue& catalogue, const Plan& plan, const Placement& placement,
                 uint32_t me, Kernels& kernels, RemoteCopies& remote);

  /// Makes the descriptors, before anything below and again when addresses have changed, while
  /// nothing is in flight. `trainer_weights` is the mapped weights memory of the trainer on this
  /// device and `own_weights` this rank's: addresses that stay until then, and need not be backed
  /// yet. Forgets what was to be proven. Not collective. Throws a request error where an engine's
  /// segments cannot be served (strided_copies.hpp).
  void prepare(const PlacedMemory& trainer_weights, const PlacedMemory& own_weights);

  /// From now on `copy` also digests `views`, into `slots` sums: of this rank's memory, read back
  /// when the bytes are here. What local copies alone write is digested as they go, the rest when
  /// all of it has come.
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
  void merge_local(const Placement& placement, uint32_t me);
  /// What the last comparison found, as an offset in this rank's region.
  [[nodiscard]] std::optional<uint64_t> wrong_byte() const;
  /// The element that a byte of this rank's region belongs to.
  [[nodiscard]] WrongElement element_at(uint64_t offset) const;

  const Catalogue& catalogue_;
  Kernels& kernels_;
  RemoteCopies& remote_;
  std::vector<Piece> pieces_;       ///< All that this rank receives.
  std::vector<MergedCopy> merged_;  ///< The local ones, wherever they lie.
  ExchangedCopies exchanged_;
  std::vector<MergedCopy> local_;        ///< `merged_`, each part in one segment of both sides.
  std::vector<StridedCopy> straight_;    ///< `local_` at its addresses.
  std::unique_ptr<CopyBatch> plain_;     ///< The local copies.
  std::unique_ptr<DigestBatch> proven_;  ///< The same with digests, if they are to be proven.
  std::unique_ptr<DigestBatch> late_;    ///< Digests of what remote copies write, if any do.
  std::vector<uint64_t> sums_;
  std::vector<Extent> received_;  ///< Where they write; in order, without overlaps.
  uint64_t bytes_ = 0;
};

}  // namespace awex
