#pragma once

#include <cstdio>
#include <cstdlib>

#include "base/error.hpp"

namespace awex::fuzz {

/// Ends the process, so that the fuzzer keeps the input, unless `condition` holds.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

/// Runs `action`, which may succeed or throw a request error, and nothing else.
template <class Action>
void only_request_errors(Action action) {
  try {
    action();
  } catch (const Error& error) {
    require(error.code() == ExitCode::kRequest, error.what());
  }
}

}  // namespace awex::fuzz
