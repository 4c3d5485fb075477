#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "transfer/move/remote_copies.hpp"

namespace awex {

/// What the messages of one round and direction have of the staging memory.
inline constexpr uint64_t kMessageBufferBytes = kStagingBytes / 4;

/// A contiguous run of bytes on its way between two inference ranks.
struct Message {
  uint32_t peer = 0;    ///< The other end's role rank among the inference ranks; never the own.
  uint64_t offset = 0;  ///< In a buffer of kMessageBufferBytes, at both ends.
  uint64_t bytes = 0;   ///< > 0.
};

/// At most one message to and one from each peer, side by side in a buffer for each direction.
struct MessageRound {
  uint32_t turn = 0;  ///< Which message of its pair each one is, from 0; at both ends the same.
  std::vector<Message> sends;
  std::vector<Message> receives;
};

/// Moves messages between the inference ranks of a job, for CopiesInRounds.
///
/// All that is ever to be exchanged is told once, with `prepare`. Every pass then goes through the
/// rounds in order, for each: `open`; packing into `outbox`, on Stream::kSend; `deliver`; unpacking
/// from `inbox`, on Stream::kReceive; `close`. On cuda these queue what orders both streams with
/// the other ends' and return at once, so that rounds overlap as far as there are buffers. On host
/// a round is done when `deliver` returns. All inference ranks must go through equal rounds. Calls
/// throw what the job's poll throws, and Error(kDeadline) that names the peers.
class Exchange {
 public:
  /// `inference_ranks` are the world ranks of all inference ranks, by role rank.
  explicit Exchange(std::vector<int> inference_ranks)
      : inference_ranks_(std::move(inference_ranks)) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  Exchange(Exchange&&) = delete;
  Exchange& operator=(Exchange&&) = delete;
  virtual ~Exchange() = default;

  /// Tells all rounds of a pass, in order. Once, before anything below.
  virtual void prepare(std::vector<MessageRound> rounds) { rounds_ = std::move(rounds); }
  [[nodiscard]] const std::vector<MessageRound>& rounds() const { return rounds_; }
  /// World ranks at the other ends of rounds `first` to before `end`, in order, each once.
  [[nodiscard]] std::vector<int> ranks_met(size_t first, size_t end) const;
  /// Makes the connections to the peers of all rounds, so that none is made later. All inference
  /// ranks together.
  virtual void connect() = 0;

  /// Where the messages of a turn are packed.
  [[nodiscard]] virtual std::byte* outbox(uint32_t turn) const = 0;
  /// Where the messages of a turn arrive.
  [[nodiscard]] virtual const std::byte* inbox(uint32_t turn) const = 0;

  virtual void open(size_t /*round*/) {}
  virtual void deliver(size_t round) = 0;
  virtual void close(size_t /*round*/) {}

  /// Waits until all work on the kernels' main stream is done (join the others before), watching
  /// for the exchange's own failures.
  virtual void wait() = 0;
  /// As RemoteCopies::abort and rebuild. What is done when a call returns needs neither.
  virtual void abort(const Deadline& /*deadline*/) {}
  virtual void rebuild() {}
  /// Device memory held.
  [[nodiscard]] virtual uint64_t staging_bytes() const = 0;

 protected:
  /// Of a message's other end.
  [[nodiscard]] int world_rank(uint32_t peer) const { return inference_ranks_.at(peer); }
  [[nodiscard]] const std::vector<int>& inference_ranks() const { return inference_ranks_; }

 private:
  std::vector<int> inference_ranks_;
  std::vector<MessageRound> rounds_;
};

}  // namespace awex
