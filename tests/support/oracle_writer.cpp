#include "support/oracle_writer.hpp"

#include <fmt/format.h>

#include <stdexcept>

namespace awex::test {

uint64_t divide(uint64_t whole, uint64_t parts, const std::string& what) {
  if (parts == 0 || whole % parts != 0) {
    throw DoesNotDivide{fmt::format("{}: {} by {}", what, whole, parts)};
  }
  return whole / parts;
}

uint64_t padded_to(uint64_t value, uint64_t step) {
  while (value % step != 0) ++value;
  return value;
}

IdMatrix rows_of(const IdMatrix& m, uint64_t first, uint64_t count) {
  IdMatrix out{count, m.cols, {}};
  for (uint64_t r = first; r < first + count; ++r) {
    for (uint64_t c = 0; c < m.cols; ++c) out.ids.push_back(m.ids.at(r * m.cols + c));
  }
  return out;
}

IdMatrix cols_of(const IdMatrix& m, uint64_t first, uint64_t count) {
  IdMatrix out{m.rows, count, {}};
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t c = first; c < first + count; ++c) out.ids.push_back(m.ids.at(r * m.cols + c));
  }
  return out;
}

IdMatrix stack(const std::vector<IdMatrix>& parts) {
  IdMatrix out{0, parts.at(0).cols, {}};
  for (const IdMatrix& part : parts) {
    if (part.cols != out.cols) throw std::logic_error("oracle: stacked matrices differ in columns");
    out.rows += part.rows;
    out.ids.insert(out.ids.end(), part.ids.begin(), part.ids.end());
  }
  return out;
}

IdMatrix pad_rows(IdMatrix m, uint64_t rows) {
  while (m.rows < rows) {
    m.ids.insert(m.ids.end(), m.cols, kPadding);
    ++m.rows;
  }
  return m;
}

IdMatrix row_part(const IdMatrix& m, Slice slice, const std::string& what) {
  const uint64_t rows = divide(m.rows, slice.count, what);
  return rows_of(m, slice.index * rows, rows);
}

IdMatrix col_part(const IdMatrix& m, Slice slice, const std::string& what) {
  const uint64_t cols = divide(m.cols, slice.count, what);
  return cols_of(m, slice.index * cols, cols);
}

std::vector<uint64_t> grid_place(uint64_t rank, const std::vector<uint64_t>& sizes) {
  std::vector<uint64_t> place;
  for (const uint64_t size : sizes) {
    if (size == 0) throw DoesNotDivide{"a group of no ranks"};
    place.push_back(rank % size);
    rank /= size;
  }
  if (rank != 0) throw DoesNotDivide{"a rank beyond the grid"};
  return place;
}

std::vector<std::vector<uint64_t>> deal_layers(const std::vector<uint64_t>& sizes,
                                               uint64_t layers) {
  std::vector<std::vector<uint64_t>> stages;
  uint64_t next = 0;
  for (const uint64_t size : sizes) {
    stages.emplace_back();
    for (uint64_t i = 0; i < size; ++i) stages.back().push_back(next++);
  }
  if (next != layers) throw DoesNotDivide{"stages that do not add up to the model's layers"};
  return stages;
}

IdMatrix Writer::canonical(const std::string& name) const {
  const uint32_t tensor = catalogue_.find(name).value();
  const TensorInfo& info = catalogue_.tensors().at(tensor);
  IdMatrix m{info.rows, info.cols, {}};
  for (uint64_t i = 0; i < info.rows * info.cols; ++i) m.ids.push_back(identity_of(tensor, i));
  return m;
}

void Writer::put_stack(const std::string& name, const std::vector<IdMatrix>& matrices) {
  put_plain(name, stack(matrices));
  if (!scaler_.scales(matrices.front())) return;
  std::vector<IdMatrix> scales;
  for (const IdMatrix& m : matrices) scales.push_back(scaler_.scales_of(m));
  put_plain(name + "_scale_inv", stack(scales));
}

void Writer::put_plain(const std::string& name, IdMatrix m) {
  if (!out_.emplace(name, std::move(m)).second) throw std::logic_error("oracle: twice " + name);
}

IdMatrix Writer::gate_up(const std::string& mlp, Slice slice) const {
  const bool mixtral = has(mlp + "w1.weight");
  return stack(
      {row_part(canonical(mlp + (mixtral ? "w1" : "gate_proj") + ".weight"), slice,
                "gate_proj rows"),
       row_part(canonical(mlp + (mixtral ? "w3" : "up_proj") + ".weight"), slice, "up_proj rows")});
}

IdMatrix Writer::down(const std::string& mlp, Slice slice) const {
  const bool mixtral = has(mlp + "w2.weight");
  return col_part(canonical(mlp + (mixtral ? "w2" : "down_proj") + ".weight"), slice,
                  "down_proj columns");
}

std::string Writer::shared_experts(const std::string& moe) const {
  for (const char* name : {"shared_experts.", "shared_expert."}) {
    if (has(moe + name + "gate_proj.weight")) return moe + name;
  }
  return "";
}

bool Writer::is_gate_matrix(const std::string& name) {
  return name.ends_with(".gate_proj.weight") || name.ends_with(".w1.weight");
}

IdMatrix Writer::output_matrix() const {
  return canonical(has("lm_head.weight") ? "lm_head.weight" : "model.embed_tokens.weight");
}

}  // namespace awex::test
