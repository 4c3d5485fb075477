#pragma once

#include <csignal>

namespace awex {

/// How a signal that tells a process to end is called: "SIGTERM", "SIGINT" or "SIGHUP".
[[nodiscard]] constexpr const char* signal_name(int signal_number) {
  if (signal_number == SIGINT) return "SIGINT";
  return signal_number == SIGHUP ? "SIGHUP" : "SIGTERM";
}

}  // namespace awex
