#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace awex {

/// The candidate with the smallest edit distance to `word`, capitals and '_' for '-' not counted,
/// or "" when none is near (more than a third of the word's letters, and at least two, would have
/// to change).
[[nodiscard]] std::string nearest_name(std::string_view word,
                                       const std::vector<std::string>& candidates);

/// "did you mean \"x\"?", or "known: a, b, c" when nothing is near.
[[nodiscard]] std::string suggestion(std::string_view word,
                                     const std::vector<std::string>& candidates);

}  // namespace awex
