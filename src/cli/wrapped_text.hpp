#pragma once

#include <cstddef>
#include <string>

namespace awex {

/// As wide as what the program writes for people may be.
inline constexpr size_t kTextWidth = 80;

/// `text` broken between words into lines of at most `width` bytes, but for longer words. The first
/// line is taken to stand behind `indent` bytes of something else; the others begin with as many
/// blanks. Newlines in the text stay. No newline at the end.
[[nodiscard]] std::string wrapped(const std::string& text, size_t width, size_t indent);

}  // namespace awex
