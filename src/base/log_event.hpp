#pragma once

#include <string>

#include "base/json_values.hpp"

namespace awex::log {

/// What a line is about, for programs: its name ("phase") and its facts by key, which JSON lines
/// have beside time, level, rank, host, event and message. Units are in the keys.
struct Event {
  std::string name;
  Json fields = Json::object();
};

enum class Severity { kDebug, kInfo, kWarning, kError };

/// A line as programs read it, without a newline: one JSON object of time (UTC, milliseconds),
/// level, rank, host, event, message and the event's fields; null for what is unknown.
[[nodiscard]] std::string json_line(Severity severity, const std::string& message,
                                    const Event& event);

/// As the functions without an event; text leaves it out. JSON has details unless quiet.
void note(const std::string& text, const Event& event);
void detail(const std::string& text, const Event& event);

}  // namespace awex::log
