#include "cli/wrapped_text.hpp"

#include <algorithm>
#include <sstream>

namespace awex {
namespace {

constexpr char kEscape = '\033';
/// Long names may be broken behind these.
constexpr std::string_view kSigns = "/-_,:;=+.@";

/// The bytes that one character takes at `at`: an escape code counts with what follows it.
size_t bytes_at(std::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() && text[end] == kEscape) {
    end = std::min(text.find('m', end), text.size() - 1) + 1;
  }
  if (end < text.size()) ++end;
  const auto continues = [&] {
    return end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U;
  };
  while (continues()) ++end;
  return end - at;
}

/// The bytes of the longest begin of a word that is too long for `width` columns and may stand on a
/// line of its own.
size_t begin_of(std::string_view word, size_t width) {
  size_t end = 0;
  size_t behind_sign = 0;
  for (size_t columns = 0; columns < width && end < word.size(); ++columns) {
    end += bytes_at(word, end);
    if (kSigns.find(word[end - 1]) != std::string_view::npos) behind_sign = end;
  }
  // A sign near the begin would leave most of the line empty.
  return behind_sign > end / 2 ? behind_sign : end;
}

/// Adds a word to the last of the lines, or to new ones.
void add_word(std::vector<std::string>& lines, std::string_view word, size_t width) {
  const size_t used = columns_of(lines.back());
  if (used > 0 && used + 1 + columns_of(word) <= width) {
    lines.back().append(" ").append(word);
    return;
  }
  if (used > 0) lines.emplace_back();
  while (columns_of(word) > width) {
    const size_t bytes = begin_of(word, width);
    lines.back() = word.substr(0, bytes);
    lines.emplace_back();
    word.remove_prefix(bytes);
  }
  lines.back() = word;
}

}  // namespace

size_t columns_of(std::string_view text) {
  size_t columns = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == kEscape) {
      i = std::min(text.find('m', i), text.size() - 1);
    } else if ((static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80U) {
      ++columns;
    }
  }
  return columns;
}

std::vector<std::string> folded(const std::string& text, size_t width) {
  std::vector<std::string> lines;
  std::istringstream paragraphs(text);
  for (std::string paragraph; std::getline(paragraphs, paragraph);) {
    lines.emplace_back();
    std::istringstream words(paragraph);
    for (std::string word; words >> word;) add_word(lines, word, std::max<size_t>(width, 1));
  }
  if (lines.empty()) lines.emplace_back();
  return lines;
}

std::string fitted(const std::string& text, size_t width, const std::string& margin) {
  const size_t room = width - std::min(width - 1, columns_of(margin));
  std::string out;
  for (const auto& line : folded(text, room)) {
    if (!out.empty()) out += "\n" + margin;
    out += line;
  }
  return out;
}

std::string wrapped(const std::string& text, size_t width, size_t indent) {
  const std::string blanks(indent, ' ');
  std::string out;
  std::istringstream paragraphs(text);
  for (std::string paragraph; std::getline(paragraphs, paragraph);) {
    if (!out.empty()) out += "\n" + blanks;
    // The first line, too, stands behind `indent` columns that are not in the text.
    size_t used = indent;
    std::istringstream words(paragraph);
    for (std::string word; words >> word;) {
      const bool is_first = used == indent;
      if (!is_first && used + 1 + columns_of(word) > width) {
        out += "\n" + blanks;
        used = indent;
      } else if (!is_first) {
        out += " ";
        ++used;
      }
      out += word;
      used += columns_of(word);
    }
  }
  return out;
}

}  // namespace awex
