#pragma once

#include <functional>
#include <optional>

#include "base/error.hpp"

namespace awex::test {

/// The Error that `work` throws; nothing where it throws none.
inline std::optional<Error> failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace awex::test
