#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

/// Values of reports that may be missing: null then.

namespace awex {

using Json = nlohmann::ordered_json;

[[nodiscard]] inline Json text_or_null(const std::string& text) {
  return text.empty() ? Json() : Json(text);
}

template <class T>
[[nodiscard]] Json value_or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

}  // namespace awex
