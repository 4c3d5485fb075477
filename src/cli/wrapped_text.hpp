#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace awex {

/// As wide as what the program writes for people is, unless their terminal is known to be wider or
/// narrower.
inline constexpr size_t kTextWidth = 80;
/// Help gets no wider, however wide a terminal is: long lines are hard to read.
inline constexpr size_t kWidestHelp = 120;

/// How many columns `text` takes: its UTF-8 characters, escape codes of colours not counted.
[[nodiscard]] size_t columns_of(std::string_view text);

/// `text` as lines of at most `width` columns: broken between words, and words that are longer
/// behind one of their signs (as / - _ , :) or, without any, anywhere. At least one line. A width
/// below 1 counts as 1.
[[nodiscard]] std::vector<std::string> folded(const std::string& text, size_t width);

/// `text` broken between words into lines of at most `width` columns, but for longer words, which
/// stay whole to be copied. The first line is taken to stand behind `indent` columns of something
/// else; the others begin with as many blanks. Newlines in the text stay. No newline at the end.
[[nodiscard]] std::string wrapped(const std::string& text, size_t width, size_t indent);

/// `text` as `folded`, no line wider than `width`. The first line is taken to
/// stand behind something as wide as `margin`, which begins the others. No newline at the end.
[[nodiscard]] std::string fitted(const std::string& text, size_t width, const std::string& margin);
[[nodiscard]] inline std::string fitted(const std::string& text, size_t width, size_t indent) {
  return fitted(text, width, std::string(indent, ' '));
}

}  // namespace awex
