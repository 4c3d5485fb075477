#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "memory/device.hpp"
#include "transfer/exchange.hpp"
#include "transfer/kernels.hpp"
#include "transfer/plan.hpp"
#include "transfer/rounds.hpp"

namespace awex {

/// Device memory for messages on their way, in each direction.
inline constexpr uint64_t kStagingBytes = 24ULL << 20;

/// The first element in which inference's bytes differ from the trainer's.
struct WrongElement {
  uint32_t tensor = 0;
  uint64_t index = 0;  ///< In the canonical tensor, row-major.
};

/// Moves the trainers' weights into one inference rank's memory: pieces of its own device straight
/// from the trainer's mapped memory, pieces of other devices in rounds through staging memory.
/// Descriptors and staging are made once; addresses never change. Lives on inference ranks only.
/// What comes from other devices comes first: so what is digested behind the local copies is all
/// here, and the digests of what those write are taken as they go.
class WeightTransfer {
 public:
  /// `trainer_weights` is the mapped weights region of the trainer on this device and
  /// `own_weights` this rank's region: addresses that stay, need not be backed yet. Takes
  /// 2 * kStagingBytes of device memory if there are remote pieces. All referred objects must
  /// outlive this one.
  WeightTransfer(const Catalogue& catalogue, const Plan& plan, const Placement& placement,
                 uint32_t me, const std::byte* trainer_weights, std::byte* own_weights,
                 Device& device, Kernels& kernels, Exchange& exchange);

  /// From now on `copy` also digests `views`, into `slots` sums: of this rank's memory as it is
  /// when all bytes are here, read back.
  void prove(std::span<const DigestView> views, uint32_t slots);

  /// Exchanges a few bytes with every peer of the rounds, so that connections and their memory are
  /// there before the first version. All inference ranks must call it.
  void connect();
  /// Moves every byte and waits for it. All inference ranks must call it; both regions of a device
  /// must be backed and mapped.
  void copy();
  /// Brings every byte here once more and compares it with what `copy` wrote. The same conditions.
  [[nodiscard]] std::optional<WrongElement> compare();

  /// One sum a slot, of the last `copy`; none if nothing is to be proven.
  [[nodiscard]] std::span<const uint64_t> sums() const;

  /// Bytes that this rank writes.
  [[nodiscard]] uint64_t bytes() const { return bytes_; }
  /// Device memory held for staging.
  [[nodiscard]] uint64_t staging_bytes() const { return staging_ ? staging_->held_bytes() : 0; }

 private:
  struct ReadyRound {
    std::vector<Message> sends;
    std::vector<Message> receives;
    std::vector<MergedCopy> received;  ///< What `unpack` writes, copy by copy.
    std::unique_ptr<CopyBatch> pack;
    std::unique_ptr<CopyBatch> unpack;
  };

  void merge_local(const Placement& placement, uint32_t me);
  [[nodiscard]] std::vector<StridedCopy> local_copies() const;
  void prepare_round(const Round& round);
  /// Packs a round's sends and exchanges them, ordered before later work on the kernels' stream.
  void exchange_round(ReadyRound& round);

  /// The element that a byte of this rank's region belongs to.
  [[nodiscard]] WrongElement element_at(uint64_t offset) const;

  const Catalogue& catalogue_;
  const std::byte* trainer_weights_;
  std::byte* own_weights_;
  Kernels& kernels_;
  Exchange& exchange_;
  std::unique_ptr<DeviceRange> staging_;
  std::vector<Piece> pieces_;  ///< All that this rank receives.
  std::vector<MergedCopy> local_;
  std::unique_ptr<CopyBatch> plain_;     ///< The local copies.
  std::unique_ptr<DigestBatch> proven_;  ///< The same with digests, if they are to be proven.
  std::vector<ReadyRound> rounds_;
  uint64_t bytes_ = 0;
};

}  // namespace awex
