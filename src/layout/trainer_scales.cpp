#include "layout/trainer_scales.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

/// A mark for each block of each quantised tensor: bits, as sharded trainers may share all blocks
/// of a model, millions, each held by many.
using BlockMarks = std::vector<std::vector<bool>>;

/// Marks the blocks that a shard touches without holding all of them. A tensor's last blocks may
/// end where it does.
void mark_blocks_held_in_part(const Box& box, const TensorInfo& info, std::vector<bool>& marks) {
  const uint32_t block = info.scaling->block;
  const auto whole = [block](Range held, uint64_t size) -> Range {
    return {ceil_div(held.begin, block),
            held.end == size ? ceil_div(size, block) : held.end / block};
  };
  const Box touched = touched_blocks(box, block);
  const Range whole_rows = whole(box.rows, info.rows);
  const Range whole_cols = whole(box.cols, info.cols);
  if (whole_rows == touched.rows && whole_cols == touched.cols) return;
  const uint64_t row_blocks = ceil_div(info.cols, block);
  marks.resize(ceil_div(info.rows, block) * row_blocks);
  const auto is_in = [](uint64_t at, Range range) { return range.begin <= at && at < range.end; };
  for (uint64_t row = touched.rows.begin; row < touched.rows.end; ++row) {
    for (uint64_t col = touched.cols.begin; col < touched.cols.end; ++col) {
      if (is_in(row, whole_rows) && is_in(col, whole_cols)) continue;
      marks[row * row_blocks + col] = true;
    }
  }
}

/// Marks by tensor; those of a tensor whose blocks are all held whole may be missing.
std::vector<BlockId> marked_blocks(const BlockMarks& marks, const Catalogue& held) {
  std::vector<BlockId> blocks;
  for (uint32_t tensor = 0; tensor < marks.size(); ++tensor) {
    const auto& info = held.tensors()[tensor];
    if (marks[tensor].empty()) continue;
    const uint64_t row_blocks = ceil_div(info.cols, info.scaling->block);
    for (uint64_t at = 0; at < marks[tensor].size(); ++at) {
      if (!marks[tensor][at]) continue;
      blocks.push_back(
          {tensor, narrow<uint32_t>(at / row_blocks), narrow<uint32_t>(at % row_blocks)});
    }
  }
  return blocks;
}

/// Appends the scales of a shard behind the region's end and, if it owns any, their shard.
void append_scales(RankLayout& layout, Shard& shard, const BlockScaling& scaling) {
  const Box touched = touched_blocks(shard.box, scaling.block);
  const Box owned = owned_blocks(shard.box, scaling.block);
  shard.scales = TouchedScales{layout.bytes, touched.cols.size()};
  auto& parameter = layout.parameters.back();
  parameter.rows += touched.elements();
  layout.bytes += touched.elements() * sizeof(float);
  if (owned.empty()) return;
  const uint64_t before = (owned.rows.begin - touched.rows.begin) * touched.cols.size() +
                          owned.cols.begin - touched.cols.begin;
  layout.shards.push_back({.tensor = scaling.scales,
                           .parameter = narrow<uint32_t>(layout.parameters.size() - 1),
                           .replica = shard.replica,
                           .box = owned,
                           .offset_bytes = shard.scales->offset_bytes + before * sizeof(float),
                           .row_stride = touched.cols.size()});
}

class ScaledLayout final : public Layout {
 public:
  ScaledLayout(std::unique_ptr<Layout> base, const Catalogue& held)
      : base_(std::move(base)), held_(held) {}

  [[nodiscard]] std::string describe() const override { return base_->describe(); }
  [[nodiscard]] uint32_t ranks() const override { return base_->ranks(); }
  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    return add_scales(base_->rank_layout(rank), held_);
  }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override {
    return base_->first_like(rank);
  }

 private:
  std::unique_ptr<Layout> base_;
  const Catalogue& held_;
};

}  // namespace

RankLayout add_scales(RankLayout base, const Catalogue& held) {
  RankLayout layout = std::move(base);
  const size_t shards = layout.shards.size();
  std::optional<uint32_t> scaled;  // The parameter whose scales are being appended.
  for (size_t i = 0; i < shards; ++i) {
    const auto& scaling = held.tensors()[layout.shards[i].tensor].scaling;
    if (!scaling) continue;
    const uint32_t parameter = layout.shards[i].parameter;
    if (scaled != parameter) {
      scaled = parameter;
      layout.bytes = round_up(layout.bytes, kParameterAlignment);
      layout.parameters.push_back({.name = layout.parameters[parameter].name + "_scale_inv",
                                   .dtype = DType::kF32,
                                   .cols = 1,
                                   .offset_bytes = layout.bytes});
    }
    Shard shard = layout.shards[i];
    append_scales(layout, shard, *scaling);
    layout.shards[i] = shard;
  }
  layout.bytes = round_up(layout.bytes, kParameterAlignment);
  return layout;
}

std::unique_ptr<Layout> with_scales(std::unique_ptr<Layout> base, const Catalogue& held) {
  if (model_tensors(held) == held.tensors().size()) return base;
  return std::make_unique<ScaledLayout>(std::move(base), held);
}

std::vector<ScaledShard> scaled_shards(const RankLayout& rank, const Catalogue& held) {
  std::vector<ScaledShard> scaled;
  for (const auto& shard : rank.shards) {
    if (!shard.scales) continue;
    const auto& info = held.tensors()[shard.tensor];
    scaled.push_back({shard.tensor, info.source_dtype(), shard.box, shard.offset_bytes,
                      shard.row_stride,
                      scale_place(*shard.scales, shard.box, shard.box, info.scaling->block)});
  }
  return scaled;
}

std::vector<BlockId> shared_blocks(const Layout& trainer, const Catalogue& held) {
  BlockMarks marks(model_tensors(held));
  for (uint32_t rank = 0; rank < trainer.ranks(); ++rank) {
    if (trainer.first_like(rank) != rank) continue;
    for (const auto& shard : trainer.rank_layout(rank).shards) {
      const auto& info = held.tensors()[shard.tensor];
      if (info.scaling) mark_blocks_held_in_part(shard.box, info, marks[shard.tensor]);
    }
  }
  return marked_blocks(marks, held);
}

std::vector<SharedScale> shared_scales(const RankLayout& rank, const Catalogue& held,
                                       std::span<const BlockId> shared) {
  std::vector<SharedScale> scales;
  for (const auto& shard : rank.shards) {
    if (!shard.scales) continue;
    const Box touched = touched_blocks(shard.box, held.tensors()[shard.tensor].scaling->block);
    auto at = std::lower_bound(shared.begin(), shared.end(), BlockId{shard.tensor, 0, 0});
    for (; at != shared.end() && at->tensor == shard.tensor; ++at) {
      const Box block{{at->row, at->row + 1U}, {at->col, at->col + 1U}};
      if (intersect(block, touched).empty()) continue;
      const uint64_t before = (at->row - touched.rows.begin) * shard.scales->row_stride +
                              (at->col - touched.cols.begin);
      scales.push_back({static_cast<uint64_t>(at - shared.begin()),
                        shard.scales->offset_bytes + before * sizeof(float)});
    }
  }
  return scales;
}

}  // namespace awex
