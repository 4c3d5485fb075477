#pragma once

#include <cstdint>
#include <type_traits>

#include "base/fixed_text.hpp"
#include "doctor/finding.hpp"
#include "memory/device.hpp"
#include "memory/link_limits.hpp"

namespace awex {

/// The speeds that one rank has measured, also for others. Plain data.
struct MeasuredSpeed {
  int32_t done = 0;
  LinkLimits limits;
  FixedText<256> failure{};  ///< Empty where none was tried.
};
static_assert(std::is_trivially_copyable_v<MeasuredSpeed>);

/// Measures a device's links with small copies. Not collective; ranks that share a link take turns.
/// What fails is in the result.
[[nodiscard]] MeasuredSpeed measure_speed(Device& device, Seconds longest, WaitMonitor& monitor);

/// What the speeds of a device of `backend` are worth. Pure.
[[nodiscard]] Finding judge_speed(const MeasuredSpeed& measured, BackendKind backend);

}  // namespace awex
