#include "cli/text_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

namespace awex {
namespace {

using Cells = std::vector<std::string>;

/// Cells are folded into no less, and before others have to be into no less than the second.
constexpr size_t kNarrowestCell = 6;
constexpr size_t kNarrowName = 12;

std::string without_trailing_blanks(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::string padded(const std::string& text, size_t width, TextColumn::Align align) {
  const std::string blanks(width - std::min(width, columns_of(text)), ' ');
  return align == TextColumn::Align::kLeft ? text + blanks : blanks + text;
}

/// A table on its way to a width: what it shows of the columns, and how wide.
class Drawing {
 public:
  Drawing(const std::vector<TextColumn>& columns, const std::vector<Cells>& rows)
      : columns_(columns), rows_(rows), widths_(columns.size(), 0) {
    for (size_t i = 0; i < columns.size(); ++i) {
      shown_.push_back(i);
      widths_[i] = std::max(columns_of(columns[i].title), columns_of(columns[i].unit));
      for (const auto& row : rows) widths_[i] = std::max(widths_[i], columns_of(row[i]));
    }
  }

  void fit(size_t width) {
    if (too_wide(width)) take_heading();
    if (too_wide(width)) gap_ = 1;
    while (too_wide(width) && leave_one()) {
    }
    const auto unfolded = widths_;
    while (too_wide(width) && fold_one(/*gladly=*/true)) {
    }
    while (too_wide(width) && fold_one(/*gladly=*/false)) {
    }
    if (too_wide(width)) widths_ = unfolded;  // it takes several tables, and folding no less
  }

  [[nodiscard]] std::string text(size_t width) const {
    std::string out;
    for (size_t begin = 0; begin < shown_.size();) {
      const auto [block, end] = next_block(begin, width);
      out += (begin == 0 ? "" : "\n") + block_text(block);
      begin = end;
    }
    if (left_out_.empty()) return out;
    std::vector<std::string> titles;
    for (const size_t column : left_out_) titles.push_back(columns_[column].title);
    return out + "# " +
           fitted(fmt::format("left out at {} columns: {}; COLUMNS={} shows all", width,
                              fmt::join(titles, ", "), whole_width()),
                  width, "# ") +
           "\n";
  }

 private:
  [[nodiscard]] size_t total(const std::vector<size_t>& columns, size_t gap) const {
    size_t all = gap * (columns.empty() ? 0 : columns.size() - 1);
    for (const size_t column : columns) all += widths_[column];
    return all;
  }
  [[nodiscard]] bool too_wide(size_t width) const { return total(shown_, gap_) > width; }

  /// In which everything has room, once nothing is a heading.
  [[nodiscard]] size_t whole_width() const {
    std::vector<size_t> all(columns_.size());
    std::iota(all.begin(), all.end(), size_t{0});
    return total(all, 2);
  }

  void take_heading() {
    const auto found = std::find_if(shown_.begin(), shown_.end(), [&](size_t column) {
      return columns_[column].fold == TextColumn::Fold::kHeading;
    });
    if (found == shown_.end()) return;
    heading_ = *found;
    shown_.erase(found);
  }

  bool leave_one() {
    const auto found = std::find_if(shown_.begin(), shown_.end(), [&](size_t column) {
      return columns_[column].fold == TextColumn::Fold::kLeaves;
    });
    if (found == shown_.end()) return false;
    left_out_.push_back(*found);
    shown_.erase(found);
    return true;
  }

  /// Makes the widest column whose cells may be folded narrower, by one; `gladly`: of those that
  /// are there to be folded.
  bool fold_one(bool gladly) {
    std::optional<size_t> widest;
    for (const size_t column : shown_) {
      if (columns_[column].align != TextColumn::Align::kLeft) continue;
      if (gladly && columns_[column].fold != TextColumn::Fold::kFolds) continue;
      if (widths_[column] <= (gladly ? kNarrowName : kNarrowestCell)) continue;
      if (!widest || widths_[column] > widths_[*widest]) widest = column;
    }
    if (widest) --widths_[*widest];
    return widest.has_value();
  }

  /// The columns that stand side by side from shown_[begin] on, and where the next ones begin.
  [[nodiscard]] std::pair<std::vector<size_t>, size_t> next_block(size_t begin,
                                                                  size_t width) const {
    std::vector<size_t> block;
    if (begin > 0) block.push_back(shown_.front());
    size_t end = begin;
    for (; end < shown_.size(); ++end) {
      block.push_back(shown_[end]);
      if (end > begin && total(block, gap_) > width) {
        block.pop_back();
        break;
      }
    }
    return {block, end};
  }

  [[nodiscard]] std::string block_text(const std::vector<size_t>& block) const {
    Cells titles;
    Cells units;
    for (const auto& column : columns_) {
      titles.push_back(column.title);
      units.push_back(column.unit);
    }
    auto out = row_text(block, titles);
    const bool has_units =
        std::any_of(block.begin(), block.end(), [&](size_t i) { return !units[i].empty(); });
    if (has_units) out += row_text(block, units);
    const std::string* heading = nullptr;
    for (const auto& row : rows_) {
      if (heading_ && (heading == nullptr || row[*heading_] != *heading)) {
        heading = &row[*heading_];
        out += fmt::format("{} {}\n", columns_[*heading_].title, *heading);
      }
      out += row_text(block, row);
    }
    return out;
  }

  /// A row, in as many lines as its longest cell.
  [[nodiscard]] std::string row_text(const std::vector<size_t>& block, const Cells& row) const {
    std::vector<Cells> cells;
    size_t lines = 1;
    for (const size_t column : block) {
      const bool fits = columns_of(row[column]) <= widths_[column];
      cells.push_back(fits ? Cells{row[column]} : folded(row[column], widths_[column]));
      lines = std::max(lines, cells.back().size());
    }
    std::string out;
    for (size_t line = 0; line < lines; ++line) {
      std::string text;
      for (size_t i = 0; i < block.size(); ++i) {
        text += padded(line < cells[i].size() ? cells[i][line] : "", widths_[block[i]],
                       columns_[block[i]].align) +
                std::string(gap_, ' ');
      }
      out += without_trailing_blanks(text) + "\n";
    }
    return out;
  }

  const std::vector<TextColumn>& columns_;
  const std::vector<Cells>& rows_;
  std::vector<size_t> widths_;  ///< By column.
  std::vector<size_t> shown_;
  std::vector<size_t> left_out_;
  std::optional<size_t> heading_;
  size_t gap_ = 2;
};

}  // namespace

std::string TextTable::text(size_t width) const {
  Drawing drawing(columns_, rows_);
  drawing.fit(width);
  return drawing.text(width);
}

}  // namespace awex
