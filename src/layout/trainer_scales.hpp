#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "layout/block_scales.hpp"
#include "layout/layout.hpp"

namespace awex {

/// What a trainer rank holds, with the scales of what is to be quantised behind it: base parameters
/// keep their places. Each shard of a quantised tensor gets a rectangle for all blocks that it
/// touches (Shard::scales), and a shard of the scales' tensor for those that it owns. The parameter
/// "<name>_scale_inv" is the rectangles of a parameter's shards, one after the other. `held` is
/// the held catalogue of the inference engine.
[[nodiscard]] RankLayout add_scales(RankLayout base, const Catalogue& held);

/// The trainer layout `base`, made with the model's catalogue, with scales as add_scales appends
/// them; `base` itself when nothing is quantised. Keeps a reference to `held`.
[[nodiscard]] std::unique_ptr<Layout> with_scales(std::unique_ptr<Layout> base,
                                                  const Catalogue& held);

/// A shard whose scales the trainer computes: where its elements lie, and where the scales.
struct ScaledShard {
  uint32_t tensor = 0;
  DType dtype = DType::kBf16;  ///< Of the elements as the trainer holds them.
  Box box;
  uint64_t offset_bytes = 0;  ///< Of the box's first element, from the region's start.
  uint64_t row_stride = 0;    ///< Elements.
  ScalePlace scales;
};

/// All such shards of one rank, in the layout's order. Their scales share no memory.
[[nodiscard]] std::vector<ScaledShard> scaled_shards(const RankLayout& rank, const Catalogue& held);

/// A block of a quantised tensor, by its row and column in the tensor of scales.
struct BlockId {
  uint32_t tensor = 0;  ///< The quantised one.
  uint32_t row = 0;
  uint32_t col = 0;

  constexpr bool operator==(const BlockId&) const = default;
  constexpr bool operator<(const BlockId& other) const {
    return std::tie(tensor, row, col) < std::tie(other.tensor, other.row, other.col);
  }
};

/// The blocks that some shard of the trainers holds only in part, in ascending order; usually none.
/// Their largest absolute value is the largest over all shards that touch them. The same on every
/// rank.
[[nodiscard]] std::vector<BlockId> shared_blocks(const Layout& trainer, const Catalogue& held);

/// A place where a rank keeps the scale of a shared block.
struct SharedScale {
  uint64_t block = 0;         ///< Which of the shared blocks.
  uint64_t offset_bytes = 0;  ///< Of the fp32 scale, from the region's start.
};

/// Where one rank keeps the scales of shared blocks. It has several for a block that several of
/// its shards touch.
[[nodiscard]] std::vector<SharedScale> shared_scales(const RankLayout& rank, const Catalogue& held,
                                                     std::span<const BlockId> shared);

}  // namespace awex
