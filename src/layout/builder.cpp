#include "layout/builder.hpp"

#include <utility>

#include "base/checked.hpp"

namespace awex {

void check_divides(const std::string& what, uint64_t value, const std::string& option,
                   uint32_t count) {
  if (value % count == 0) return;
  throw request_error(fmt::format("{} = {} does not divide by {}={}", what, value, option, count),
                      fmt::format("choose a {} that divides {}", option, value));
}

void RankLayoutBuilder::begin(std::string name) {
  end_parameter();
  const uint64_t offset = round_up(layout_.bytes, kParameterAlignment);
  layout_.parameters.push_back({.name = std::move(name), .offset_bytes = offset});
  open_ = true;
}

void RankLayoutBuilder::add(uint32_t tensor, Box box, Part copies) {
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
  layout_.shards.push_back({.tensor = tensor,
                            .parameter = narrow<uint32_t>(layout_.parameters.size() - 1),
                            .replica = replica_group_ * copies.count + copies.index,
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
                                          Part group, Part copies) {
  begin(std::move(name));
  const TensorInfo& info = this->info(tensor);
  const Range wanted = group.of(padded_rows);
  const Range held = intersect(wanted, {0, info.rows});
  add(tensor, {held, {0, info.cols}}, copies);
  pad_rows(wanted.size() - held.size());
}

void RankLayoutBuilder::end_parameter() {
  if (!open_) return;
  const Parameter& parameter = layout_.parameters.back();
  layout_.bytes = parameter.offset_bytes + parameter.bytes();
  open_ = false;
}

RankLayout RankLayoutBuilder::finish() {
  end_parameter();
  layout_.bytes = round_up(layout_.bytes, kParameterAlignment);
  return std::move(layout_);
}

}  // namespace awex
