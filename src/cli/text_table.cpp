#include "cli/text_table.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace awex {
namespace {

std::string without_trailing_blanks(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace

std::string TextTable::text() const {
  std::vector<std::vector<std::string>> lines(2);
  for (const auto& column : columns_) {
    lines[0].push_back(column.title);
    lines[1].push_back(column.unit);
  }
  const bool has_units =
      std::any_of(lines[1].begin(), lines[1].end(), [](const auto& unit) { return !unit.empty(); });
  if (!has_units) lines.pop_back();
  lines.insert(lines.end(), rows_.begin(), rows_.end());

  std::vector<size_t> widths(columns_.size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string out;
  for (const auto& line : lines) {
    std::string text;
    for (size_t i = 0; i < line.size(); ++i) {
      const bool left = columns_[i].align == TextColumn::Align::kLeft;
      text += left ? fmt::format("{:<{}}  ", line[i], widths[i])
                   : fmt::format("{:>{}}  ", line[i], widths[i]);
    }
    out += without_trailing_blanks(text) + "\n";
  }
  return out;
}

}  // namespace awex
