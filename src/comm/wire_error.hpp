#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "base/error.hpp"
#include "base/fixed_text.hpp"

namespace awex {

/// What a failure message between ranks is for.
enum class Telling : uint8_t {
  kSuccess,    ///< No failure: a verdict of agree.
  kFailure,    ///< The job has failed.
  kQuestion,   ///< To rank 0: "I have waited too long for you; do you know who is missing?"
  kToldToEnd,  ///< To rank 0 of a resident job: "a signal has told me to end".
  kReporting,  ///< To all: "I report the failure that ends the job: give me time".
  kReported,   ///< To all: "I have reported it".
};

/// An Error as plain data of a fixed size, so that it travels through MPI. It is small enough to be
/// sent eagerly (no action of the receiver is needed), so that a stopped rank blocks no sender.
struct WireError {
  Telling telling = Telling::kSuccess;
  bool ends_job = false;        ///< The job cannot recover from it.
  bool recovers = false;        ///< Told in the recovery from the epoch.
  bool rank_zero_lost = false;  ///< Rank 0 is gone or does not answer: another rank must report.
  uint64_t epoch = 0;           ///< In which it was told.
  int32_t code = 0;             ///< ExitCode.
  int32_t rank = -1;            ///< Of the context; -1 when unknown.
  /// Ranks whose processes have ended, as far as they find room; -1 for none.
  std::array<int32_t, 8> gone{-1, -1, -1, -1, -1, -1, -1, -1};
  double time_s = 0;  ///< When it happened, on the job's common clock.
  FixedText<1536> message{};
  FixedText<512> hint{};
  FixedText<64> host{};
  FixedText<64> gpu{};
  FixedText<16> role{};
  FixedText<64> phase{};
  FixedText<32> tag{};
  FixedText<512> tensor{};
};
static_assert(std::is_trivially_copyable_v<WireError>);
static_assert(sizeof(WireError) < 3584, "must stay below the eager limit of Open MPI's transports");

[[nodiscard]] WireError to_wire(const Error& error, double time_s);
[[nodiscard]] Error from_wire(const WireError& wire);

/// The failure that the others follow from, or null when all tell success: what is neither a passed
/// deadline nor a lost peer goes before those, then the earliest, then the one that comes first in
/// `verdicts` (which are in rank order).
[[nodiscard]] const WireError* first_cause(std::span<const WireError> verdicts);

}  // namespace awex
