#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace awex {

/// Text of at most N - 1 bytes and a zero behind it: for records that travel as plain bytes.
template <size_t N>
using FixedText = std::array<char, N>;

/// The longest prefix of at most `limit` bytes that does not cut a UTF-8 character.
[[nodiscard]] inline std::string_view utf8_prefix(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0U) == 0x80U) --limit;
  return text.substr(0, limit);
}

/// `text` as fixed text; what does not fit is cut and ends in "...". Unused bytes are zero, so that
/// equal texts are equal bytes.
template <size_t N>
[[nodiscard]] FixedText<N> fixed_text(std::string_view text) {
  constexpr std::string_view kEllipsis = "...";
  FixedText<N> fixed{};
  const bool fits = text.size() < N;
  const auto kept = fits ? text : utf8_prefix(text, N - 1 - kEllipsis.size());
  auto* end = std::copy(kept.begin(), kept.end(), fixed.begin());
  if (!fits) std::copy(kEllipsis.begin(), kEllipsis.end(), end);
  return fixed;
}

template <size_t N>
[[nodiscard]] std::string text_of(const FixedText<N>& fixed) {
  return {fixed.begin(), std::find(fixed.begin(), fixed.end(), '\0')};
}

}  // namespace awex
