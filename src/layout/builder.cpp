#include "layout/builder.hpp"

#include <string_view>
#include <utility>

#include "base/checked.hpp"
#include "layout/block_scales.hpp"

namespace awex {
namespace {

/// The first bound of a range that is neither at a block's begin nor at the tensor's end.
std::optional<uint64_t> cutting_bound(Range range, uint64_t size, uint32_t block) {
  if (range.begin % block != 0) return range.begin;
  if (range.end % block != 0 && range.end != size) return range.end;
  return std::nullopt;
}

const char* article(const std::string& option) {
  return std::string_view("aeo").find(option.front()) == std::string_view::npos ? "a" : "an";
}

std::string does_not_divide(const std::string& what, uint64_t value, const std::string& option,
                            uint32_t count) {
  return fmt::format("{} = {} does not divide by {}={}", what, value, option, count);
}

std::string smaller(const std::string& option, uint64_t value) {
  return fmt::format("choose {} {} that divides {}", article(option), option, value);
}

}  // namespace

void check_divides(const std::string& what, uint64_t value, const std::string& option,
                   uint32_t count) {
  if (value % count == 0) return;
  throw request_error(does_not_divide(what, value, option, count), smaller(option, value));
}

void check_ranks_divide(const std::string& what, uint64_t ranks, const std::string& option,
                        uint32_t count) {
  if (ranks % count == 0) return;
  throw request_error(does_not_divide(what, ranks, option, count),
                      fmt::format("{}, {}", smaller(option, ranks), kMoreRanks));
}

void RankLayoutBuilder::begin(std::string name) {
  end_parameter();
  const uint64_t offset = round_up(layout_.bytes, kParameterAlignment);
  layout_.parameters.push_back({.name = std::move(name), .offset_bytes = offset});
  open_ = true;
  matrix_row_ = 0;
  first_shard_ = layout_.shards.size();
}

/// Engines refuse the same: a scale of theirs belongs to a whole block, or to one that the tensor
/// ends in (layers/quantization/fp8.py of both).
void RankLayoutBuilder::check_blocks(const TensorInfo& info, const Box& box,
                                     Splitter splitter) const {
  const uint32_t block = info.scaling->block;
  const auto& parameter = layout_.parameters.back();
  const auto row = cutting_bound(box.rows, info.rows, block);
  const auto col = cutting_bound(box.cols, info.cols, block);
  if (row || col) {
    const auto instead =
        *splitter.instead == '\0' ? std::string() : fmt::format("{}, ", splitter.instead);
    throw request_error(
        fmt::format("{} cuts {} at {} {}, within a block of {} that shares an fp8 scale",
                    splitter.option, info.name, row ? "row" : "column", row ? *row : *col, block),
        fmt::format("choose a {} whose parts are multiples of block={}, {}or a smaller block",
                    splitter.option, block, instead));
  }
  if (const uint64_t at = parameter.rows - matrix_row_; at % block != 0) {
    throw request_error(
        fmt::format(
            "{} begins at row {} of a matrix of {}, within a block of {} that shares an fp8 "
            "scale",
            info.name, at, parameter.name, block),
        fmt::format("choose a block that divides {}, or another dtype", at));
  }
}

void RankLayoutBuilder::add(uint32_t tensor, Box box, Part replicas, Splitter splitter) {
  const TensorInfo& info = this->info(tensor);
  Parameter& parameter = layout_.parameters.back();
  if (parameter.cols == 0) {
    parameter.cols = box.cols.size();
    parameter.dtype = info.dtype;
  }
  if (parameter.cols != box.cols.size() || parameter.dtype != info.dtype) {
    throw runtime_error(fmt::format("parameter {} stacks {} on rows of another width or dtype",
                                    parameter.name, info.name));
  }
  if (box.empty()) return;
  if (info.scaling) check_blocks(info, box, splitter);
  layout_.shards.push_back({.tensor = tensor,
                            .parameter = narrow<uint32_t>(layout_.parameters.size() - 1),
                            .replica = replica_group_ * replicas.count + replicas.index,
                            .box = box,
                            .offset_bytes = parameter.offset_bytes + parameter.bytes(),
                            .row_stride = parameter.cols});
  parameter.rows += box.rows.size();
}

void RankLayoutBuilder::pad_rows(uint64_t rows) { layout_.parameters.back().rows += rows; }

void RankLayoutBuilder::add_rows(uint32_t tensor, Part group) {
  const TensorInfo& info = this->info(tensor);
  add(tensor, {group.of(info.rows), {0, info.cols}}, {});
}

void RankLayoutBuilder::add_cols(uint32_t tensor, Part group) {
  const TensorInfo& info = this->info(tensor);
  add(tensor, {{0, info.rows}, group.of(info.cols)}, {});
}

void RankLayoutBuilder::replicated(std::string name, uint32_t tensor, Part group) {
  begin(std::move(name));
  const TensorInfo& info = this->info(tensor);
  add(tensor, {{0, info.rows}, {0, info.cols}}, group);
}

void RankLayoutBuilder::split_rows(std::string name, uint32_t tensor, Part group) {
  begin(std::move(name));
  add_rows(tensor, group);
}

void RankLayoutBuilder::split_cols(std::string name, uint32_t tensor, Part group) {
  begin(std::move(name));
  add_cols(tensor, group);
}

void RankLayoutBuilder::split_padded_rows(std::string name, uint32_t tensor, uint64_t padded_rows,
                                          Part group, Part replicas) {
  begin(std::move(name));
  const TensorInfo& info = this->info(tensor);
  const Range wanted = group.of(padded_rows);
  const Range held = intersect(wanted, {0, info.rows});
  add(tensor, {held, {0, info.cols}}, replicas);
  pad_rows(wanted.size() - held.size());
}

void RankLayoutBuilder::end_parameter() {
  if (!open_) return;
  const Parameter& parameter = layout_.parameters.back();
  layout_.bytes = parameter.offset_bytes + parameter.bytes();
  open_ = false;
  if (parameter.dtype == DType::kF8E4M3) append_scales();
}

/// The scales of the last parameter, which check_blocks found to be of whole blocks.
void RankLayoutBuilder::append_scales() {
  const size_t shards = layout_.shards.size();
  const auto index = narrow<uint32_t>(layout_.parameters.size());
  Parameter scales{.name = layout_.parameters.back().name + "_scale_inv",
                   .dtype = DType::kF32,
                   .offset_bytes = round_up(layout_.bytes, kParameterAlignment)};
  for (size_t i = first_shard_; i < shards; ++i) {
    const Shard& shard = layout_.shards[i];
    const BlockScaling& scaling = *info(shard.tensor).scaling;
    const Box blocks = owned_blocks(shard.box, scaling.block);
    scales.cols = blocks.cols.size();
    layout_.shards.push_back({.tensor = scaling.scales,
                              .parameter = index,
                              .replica = shard.replica,
                              .box = blocks,
                              .offset_bytes = scales.offset_bytes + scales.bytes(),
                              .row_stride = scales.cols});
    scales.rows += blocks.rows.size();
  }
  layout_.bytes = scales.offset_bytes + scales.bytes();
  layout_.parameters.push_back(std::move(scales));
}

RankLayout RankLayoutBuilder::finish() {
  end_parameter();
  layout_.bytes = round_up(layout_.bytes, kParameterAlignment);
  return std::move(layout_);
}

}  // namespace awex
