#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "plan/plan.hpp"
#include "transfer/kernels/kernels.hpp"
#include "transfer/move/remote_copies.hpp"

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
/// from the trainer's mapped memory, and beside them pieces of other devices, by remote copies.
/// Descriptors are made once; addresses never change. Lives on inference ranks only.
class WeightTransfer {
 public:
  /// `trainer_weights` is the mapped weights region of the trainer on this device and
  /// `own_weights` this rank's region: addresses that stay, need not be backed yet. `remote` must
  /// be new. All referred objects must outlive this one.
  WeightTransfer(const Catalogue& catalogue, const Plan& plan, const Placement& placement,
                 uint32_t me, const std::byte* trainer_weights, std::byte* own_weights,
                 Kernels& kernels, RemoteCopies& remote);

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
  [[nodiscard]] std::vector<StridedCopy> local_copies() const;
  /// What the last comparison found, as an offset in this rank's region.
  [[nodiscard]] std::optional<uint64_t> wrong_byte() const;
  /// The element that a byte of this rank's region belongs to.
  [[nodiscard]] WrongElement element_at(uint64_t offset) const;

  const Catalogue& catalogue_;
  const std::byte* trainer_weights_;
  std::byte* own_weights_;
  Kernels& kernels_;
  RemoteCopies& remote_;
  std::vector<Piece> pieces_;  ///< All that this rank receives.
  std::vector<MergedCopy> local_;
  std::unique_ptr<CopyBatch> plain_;     ///< The local copies.
  std::unique_ptr<DigestBatch> proven_;  ///< The same with digests, if they are to be proven.
  std::unique_ptr<DigestBatch> late_;    ///< Digests of what remote copies write, if any do.
  std::vector<uint64_t> sums_;
  std::vector<Extent> received_;  ///< Where they write; in order, without overlaps.
  uint64_t bytes_ = 0;
};

}  // namespace awex
