#pragma once

#include <doctest/doctest.h>

#include <initializer_list>
#include <string>

#include "base/error.hpp"

namespace awex::test {

/// Runs `action`, which must throw a request error whose message holds all of `words`.
template <class Action>
void check_refused(Action action, std::initializer_list<const char*> words) {
  try {
    action();
    FAIL_CHECK("nothing was refused");
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK_MESSAGE(error.code() == ExitCode::kRequest, message);
    for (const char* word : words) {
      CHECK_MESSAGE(message.find(word) != std::string::npos, "no \"", std::string(word),
                    "\" in: ", message);
    }
  }
}

}  // namespace awex::test
