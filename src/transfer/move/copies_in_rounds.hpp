#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "plan/rounds.hpp"
#include "transfer/move/exchange.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {

/// Remote copies by messages of an exchange, in rounds (plan/rounds.hpp): each is packed into
/// one buffer, delivered, and unpacked from another.
class CopiesInRounds final : public RemoteCopies {
 public:
  /// `kernels` must outlive it.
  CopiesInRounds(std::unique_ptr<Exchange> exchange, Kernels& kernels)
      : exchange_(std::move(exchange)), kernels_(kernels) {}

  void prepare(const ExchangedCopies& copies, const PlacedMemory& trainer_weights,
               const PlacedMemory& own_weights) override;
  void connect() override { exchange_->connect(); }
  void copy() override { go_through(&CopyBatch::copy); }
  void compare() override { go_through(&CopyBatch::compare); }
  void wait() override { exchange_->wait(); }
  [[nodiscard]] std::optional<uint64_t> difference() const override;
  void abort(const Deadline& deadline) override { exchange_->abort(deadline); }
  void rebuild() override { exchange_->rebuild(); }
  [[nodiscard]] uint64_t staging_bytes() const override { return exchange_->staging_bytes(); }

 private:
  struct ReadyRound {
    std::vector<MergedCopy> received;  ///< What `unpack` writes, copy by copy.
    std::unique_ptr<CopyBatch> pack;
    std::unique_ptr<CopyBatch> unpack;
  };

  [[nodiscard]] ReadyRound make_ready(const Round& round, const PlacedMemory& trainer_weights,
                                      const PlacedMemory& own_weights) const;
  /// All rounds; what arrives in one is unpacked by `unpack`.
  void go_through(void (CopyBatch::*unpack)());

  std::unique_ptr<Exchange> exchange_;
  Kernels& kernels_;
  std::vector<ReadyRound> rounds_;
};

}  // namespace awex
