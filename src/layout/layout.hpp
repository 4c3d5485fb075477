#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layout/box.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// Where a trainer keeps the scales of all blocks that a shard of a quantised tensor touches: fp32,
/// row after row of blocks, from the block that holds the shard's first element on.
struct TouchedScales {
  uint64_t offset_bytes = 0;  ///< From the region's start.
  uint64_t row_stride = 0;    ///< Scales from one row of blocks to the next.

  constexpr bool operator==(const TouchedScales&) const = default;
};

/// One block of rows of an engine's parameter: a box of a canonical tensor, and where it lies in
/// the rank's weights region. Columns of a row are contiguous; rows are `row_stride` elements
/// apart.
struct Shard {
  uint32_t tensor = 0;     ///< Index in the catalogue.
  uint32_t parameter = 0;  ///< Index in RankLayout::parameters.
  uint32_t replica = 0;    ///< Shards of a tensor with the same replica cover it exactly once.
  Box box;
  uint64_t offset_bytes = 0;              ///< Of the box's first element, from the region's start.
  uint64_t row_stride = 0;                ///< Elements.
  std::optional<TouchedScales> scales{};  ///< Of a trainer's shard that is to be quantised.
};

/// A tensor as the engine itself names and shapes it, in the rank's weights region.
struct Parameter {
  std::string name;
  DType dtype = DType::kBf16;
  uint64_t rows = 0;
  uint64_t cols = 0;
  uint64_t offset_bytes = 0;

  [[nodiscard]] uint64_t elements() const { return rows * cols; }
  [[nodiscard]] uint64_t bytes() const { return elements() * element_bytes(dtype); }
};

/// Bytes of the weights region that no canonical element fills (vocabulary padding, alignment).
struct Gap {
  uint64_t offset_bytes = 0;
  uint64_t bytes = 0;
};

/// All that one rank of an engine holds.
struct RankLayout {
  std::vector<Parameter> parameters;
  std::vector<Shard> shards;
  uint64_t bytes = 0;  ///< Of the whole region; a multiple of kParameterAlignment.

  /// What the shards leave uncovered, in order. Engines keep zeros there. `catalogue` is the one
  /// that the layout was made with; not for layouts with a trainer's scales (trainer_scales.hpp),
  /// whose shards of scales are no whole rows.
  [[nodiscard]] std::vector<Gap> gaps(const Catalogue& catalogue) const;
};

/// Where each parameter of a region begins: a multiple of this many bytes.
inline constexpr uint64_t kParameterAlignment = 256;

/// How an engine spreads a model over its ranks. Pure: no MPI, no device; the same on every rank.
class Layout {
 public:
  Layout() = default;
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  Layout(Layout&&) = delete;
  Layout& operator=(Layout&&) = delete;
  virtual ~Layout() = default;

  /// "megatron:tp=2,pp=2": the spec that made this layout, with tp and what is not its default.
  [[nodiscard]] virtual std::string describe() const = 0;
  /// What the user must do, or know, so that the engine serves what is written in this layout: one
  /// sentence each, without an end stop. Reports show them.
  [[nodiscard]] virtual std::vector<std::string> notes() const { return {}; }
  /// Ranks of the whole role (the engine's own world times its replicas).
  [[nodiscard]] virtual uint32_t ranks() const = 0;
  /// What rank `rank` of the role holds.
  [[nodiscard]] virtual RankLayout rank_layout(uint32_t rank) const = 0;
  /// The first rank whose rank_layout is the same but for `Shard::replica`. Engine instances and
  /// data-parallel replicas are alike; planning evaluates each such group once. A layout that does
  /// not know says that every rank is like itself alone.
  [[nodiscard]] virtual uint32_t first_like(uint32_t rank) const { return rank; }
};

}  // namespace awex
