#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <functional>
#include <vector>

#include "comm/job.hpp"
#include "memory/cuda_owners.hpp"
#include "transfer/move/exchange.hpp"

namespace awex {

/// Lets a host follow the rounds that it has queued on a device's streams: bounds how many are
/// under way, and tells who is late. Every pass records all rounds, in order.
class RoundsInFlight {
 public:
  /// Both must outlive it.
  RoundsInFlight(Job& job, const Exchange& exchange) : job_(job), exchange_(exchange) {}

  /// A round's work on `stream`, queued before, is all of one direction.
  void record_sent(size_t round, cudaStream_t stream) const { record(sent_, round, stream); }
  void record_received(size_t round, cudaStream_t stream) const {
    record(received_, round, stream);
  }

  /// What every wait asks as well: whether the exchange can go on; may throw why it cannot.
  using Check = std::function<bool()>;

  /// To be called before a round is queued: waits for the one kMost before it.
  void make_room(size_t round, const Check& check) const;
  /// Waits for all that is queued on `stream`, which is to be behind all rounds of the pass.
  void wait_for_all(cudaStream_t stream, const Check& check) const;

 private:
  /// Fewer than fill a stream, for then its next launch would wait in the driver, and neither a
  /// deadline nor another rank's failure would be seen.
  static constexpr size_t kMost = 64;
  using Events = std::array<CudaEvent, kMost>;

  static void record(const Events& events, size_t round, cudaStream_t stream) {
    events[round % kMost].record(stream);
  }
  [[nodiscard]] bool is_done(size_t round) const;
  [[nodiscard]] std::vector<int> late_ranks() const;

  Job& job_;
  const Exchange& exchange_;
  Events sent_;  ///< Ends of the last rounds.
  Events received_;
};

}  // namespace awex
