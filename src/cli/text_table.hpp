#pragma once

#include <string>
#include <vector>

#include "cli/wrapped_text.hpp"

namespace awex {

/// A column of a text table: its title, and below it its unit ("GB/s", or empty).
struct TextColumn {
  enum class Align { kLeft, kRight };
  /// What becomes of it where the table is too wide.
  enum class Fold {
    kStays,
    kHeading,  ///< It becomes a line of its own wherever its cells change: "version 3".
    kLeaves,   ///< It is left out, the first of these columns first.
    kFolds,    ///< Its cells are folded, those of the widest of these columns first.
  };

  std::string title;
  std::string unit;
  Align align = Align::kRight;
  Fold fold = Fold::kStays;
};

/// Rows of cells under titles and a row of units, in columns as wide as their widest cell.
class TextTable {
 public:
  explicit TextTable(std::vector<TextColumn> columns) : columns_(std::move(columns)) {}

  /// `cells` has one entry a column.
  void add_row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  /// All lines, each ended by a newline and without trailing blanks. The row of units is left out
  /// when no column has one. A table that is wider than `width` columns becomes narrower step by
  /// step until it fits: columns become headings, stand closer together, or leave, which a last
  /// line tells ("# left out ..."); then cells are folded, first those of columns that say so, then
  /// of all that are aligned left; what is too wide then stands in tables below each other, which
  /// share their first column.
  [[nodiscard]] std::string text(size_t width = kTextWidth) const;

 private:
  std::vector<TextColumn> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace awex
