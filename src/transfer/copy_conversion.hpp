#pragma once

#include <cstddef>
#include <optional>

#include "transfer/plan_copies.hpp"
#include "transfer/scale_grid.hpp"

namespace awex {

/// How a copy's elements change, if they do; `trainer` is the base of its source's region.
[[nodiscard]] inline std::optional<Conversion> conversion_of(const MergedCopy& copy,
                                                             const std::byte* trainer) {
  if (copy.from == copy.to) return std::nullopt;
  Conversion conversion{copy.from, copy.to, {}};
  if (copy.scales) conversion.grid = scale_grid(*copy.scales, trainer);
  return conversion;
}

}  // namespace awex
