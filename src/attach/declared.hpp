#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/layout.hpp"
#include "memory/placed_memory.hpp"
#include "memory/region.hpp"

namespace awex::attach {

/// What an engine's weights are measured by.
struct WantedWeights {
  const Catalogue& catalogue;  ///< The layout's.
  const RankLayout& layout;
  std::string spec;         ///< "megatron:tp=2".
  uint64_t room_bytes = 0;  ///< Of the engine's memory of weights.
  /// Where a former engine had them, in the layout's order; empty for anywhere.
  std::vector<Parameter> places{};
};

/// The request error when what an engine declares as its weights is not what its layout holds:
/// names what is missing, unknown, or of another shape or dtype, what does not lie in the memory,
/// overlaps or is not at a multiple of 8 bytes, and the likely cause.
[[nodiscard]] std::optional<Error> differences(const std::vector<Parameter>& declared,
                                               const WantedWeights& wanted);
/// The request error when tensors of another tag do not lie in its memory, or overlap.
[[nodiscard]] std::optional<Error> misplaced(const std::vector<Parameter>& declared, Tag tag,
                                             uint64_t room_bytes);

/// What is declared without differences, in the layout's order.
[[nodiscard]] std::vector<Parameter> in_order_of(const RankLayout& layout,
                                                 const std::vector<Parameter>& declared);

/// Where the layout's bytes lie when its parameters lie at `places` from `memory` on.
[[nodiscard]] std::vector<MemorySegment> segments_of(const RankLayout& layout,
                                                     const std::vector<Parameter>& places,
                                                     std::byte* memory);

}  // namespace awex::attach
