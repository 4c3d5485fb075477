#pragma once

#include <string>
#include <vector>

namespace awex {

/// A column of a text table: its title, and below it its unit ("GB/s", or empty).
struct TextColumn {
  enum class Align { kLeft, kRight };

  std::string title;
  std::string unit;
  Align align = Align::kRight;
};

/// Rows of cells under titles and a row of units, in columns as wide as their widest cell.
class TextTable {
 public:
  explicit TextTable(std::vector<TextColumn> columns) : columns_(std::move(columns)) {}

  /// `cells` has one entry a column.
  void add_row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  /// All lines, each ended by a newline and without trailing blanks. The row of units is left out
  /// when no column has one.
  [[nodiscard]] std::string text() const;

 private:
  std::vector<TextColumn> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace awex
