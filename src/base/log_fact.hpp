#pragma once

#include <string>

#include "base/json_values.hpp"

namespace awex::log {

/// What a line is about, for programs: its name ("phase") and its facts by key, which JSON lines
/// have beside time, level, rank, host, event and message. Units are in the keys.
struct Fact {
  std::string name;
  Json fields = Json::object();
};

enum class Severity { kDebug, kInfo, kWarning, kError };

/// A line as programs read it, without a newline: one JSON object of time (UTC, milliseconds),
/// level, rank, host, event, message and the fact's fields; null for what is unknown.
[[nodiscard]] std::string json_line(Severity severity, const std::string& message,
                                    const Fact& fact);

/// As the functions without a fact; text leaves it out. JSON has details unless quiet.
void note(const std::string& text, const Fact& fact);
void detail(const std::string& text, const Fact& fact);

}  // namespace awex::log
