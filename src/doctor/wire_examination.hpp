#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "base/fixed_text.hpp"
#include "doctor/finding.hpp"

namespace awex {

/// A finding as it travels.
struct WireFinding {
  struct Value {
    FixedText<32> name{};
    double value = 0;
  };
  Verdict verdict = Verdict::kPassed;
  FixedText<384> reason{};
  FixedText<384> remedy{};
  std::array<Value, 3> values{};
};

/// What a rank tells all others at the end.
struct WireExamination {
  int32_t pid = 0;
  int32_t has_gpu = 0;
  int32_t gpu_index = 0;
  std::array<uint8_t, 16> gpu_uuid{};
  FixedText<96> gpu_name{};
  int32_t partner = -1;
  std::array<WireFinding, kChecks> findings{};
};
static_assert(std::is_trivially_copyable_v<WireExamination>);

/// Texts and values that do not fit are cut.
[[nodiscard]] WireFinding to_wire(const Finding& finding);
[[nodiscard]] Finding from_wire(const WireFinding& wire);

}  // namespace awex
