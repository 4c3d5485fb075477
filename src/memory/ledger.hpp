#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "base/wait.hpp"

namespace awex {

/// What the processes on one GPU hold of it together. Lies in memory that they share; all zero at
/// the start.
struct LedgerWords {
  std::atomic<uint64_t> held{0};  ///< Bytes.
  std::atomic<uint64_t> peak{0};  ///< The most ever held.
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "processes cannot share a lock");

/// A GPU's memory budget as one of its processes sees it. Whoever wants memory reserves it here
/// first, and waits while others hold too much: so one role's memory flows to the other as fast as
/// it is released, and never exceeds the budget. Thread safe.
class MemoryLedger {
 public:
  /// `words` must outlive the ledger; all processes give the same budget.
  MemoryLedger(LedgerWords& words, uint64_t budget_bytes)
      : words_(words), budget_bytes_(budget_bytes) {}

  /// Books `bytes` for this process when there is room for them. Throws Error(kDeadline) that says
  /// what `what` waits for and how much is held then, and what the monitor throws.
  void reserve(uint64_t bytes, const std::string& what, const Deadline& deadline,
               WaitMonitor& monitor);
  /// Books `bytes` if there is room for them now; whether there was.
  [[nodiscard]] bool try_reserve(uint64_t bytes);
  /// Gives booked bytes back, after their memory.
  void release(uint64_t bytes) noexcept;

  [[nodiscard]] uint64_t budget_bytes() const { return budget_bytes_; }
  /// What is left of it at this moment.
  [[nodiscard]] uint64_t room_bytes() const {
    return budget_bytes_ - std::min(budget_bytes_, words_.held.load());
  }
  [[nodiscard]] uint64_t peak_bytes() const { return words_.peak.load(); }

 private:
  LedgerWords& words_;
  uint64_t budget_bytes_;
};

}  // namespace awex
