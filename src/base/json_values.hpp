#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace awex {

using Json = nlohmann::ordered_json;

/// Values of reports that may be missing: null then.
[[nodiscard]] inline Json text_or_null(const std::string& text) {
  return text.empty() ? Json() : Json(text);
}

template <class T>
[[nodiscard]] Json value_or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

/// On one line, and indented with a newline at its end. Bytes that are no UTF-8, as paths may have
/// them, are replaced.
[[nodiscard]] inline std::string compact_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
[[nodiscard]] inline std::string indented_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace awex
