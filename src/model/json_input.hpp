#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace awex {

/// Parses JSON of unknown origin. `what` names it in errors (usually the file). Throws a request
/// error for anything that is not one JSON value, for a key that an object holds twice, and for
/// nesting deeper than any file we read needs.
[[nodiscard]] nlohmann::json parse_json(std::string_view text, const std::string& what);

/// A string from a file as it may appear in a message: in quotes, control characters replaced, cut
/// when long.
[[nodiscard]] std::string in_quotes(std::string_view text);

/// A JSON value as it may appear in a message: cut when long.
[[nodiscard]] std::string shown(const nlohmann::json& value);

}  // namespace awex
