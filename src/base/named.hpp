#pragma once

#include <array>
#include <cstddef>

namespace awex {

/// What a value is called where it is written: in JSON, in reports.
template <class Value>
struct Named {
  const char* name;
  Value value;
};

/// "" for a value that has no name.
template <class Value, size_t N>
[[nodiscard]] constexpr const char* name_of(const std::array<Named<Value>, N>& names, Value value) {
  for (const auto& named : names) {
    if (named.value == value) return named.name;
  }
  return "";
}

}  // namespace awex
