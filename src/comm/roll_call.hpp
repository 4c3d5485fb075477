#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "base/fixed_text.hpp"
#include "comm/mpi_world.hpp"
#include "comm/requests.hpp"

namespace awex {

/// A call of rank 0, or the answer of another rank. Plain data.
struct WireRollCall {
  uint64_t number = 0;    ///< Which call.
  FixedText<64> waits{};  ///< For what a rank that answers waits.
};
static_assert(std::is_trivially_copyable_v<WireRollCall>);

/// Tells who is late to what MPI does on all ranks together: MPI never says whom it waits for, and
/// all have come. While rank 0 waits for that, it calls the others now and then, who answer out of
/// their own waits. It has just heard of all of them: MPI ends a process that connects to one that
/// is gone.
class RollCall {
 public:
  explicit RollCall(MpiWorld& world) : world_(world) {}

  /// This rank waits for what it does with all others, until `end`.
  void begin(const std::string& what);
  void end() { waits_ = {}; }
  /// On rank 0, while it waits: calls when it is time to.
  void call();
  /// Takes in the answers; on the other ranks answers what has come.
  void exchange();
  /// On rank 0: whether there has been the time to answer since `begin`.
  [[nodiscard]] bool has_had_time() const;
  /// On rank 0: those who have not answered the last call for which they have had the time.
  [[nodiscard]] std::vector<int> silent() const;
  /// On rank 0: itself and those whose last answer is that they wait for the same.
  [[nodiscard]] std::vector<int> waiting() const;

 private:
  using Clock = MpiWorld::Clock;

  [[nodiscard]] uint64_t due() const;

  MpiWorld& world_;
  Outbox outbox_;
  FixedText<64> waits_{};
  uint64_t number_ = 0;  ///< Of the last call,
  uint64_t before_ = 0;  ///< and of the last before this wait.
  Clock::time_point last_;
  Clock::time_point next_;
  std::map<int, WireRollCall> answers_;  ///< By rank.
};

}  // namespace awex
