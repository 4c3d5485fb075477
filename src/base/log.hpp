#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/units.hpp"

// No logging library: spdlog's sinks, too, block on a stderr that nobody reads, its queue does so
// at the end, and what our lines say (rank, phase, hint) would stay to be written.

namespace awex::log {

enum class Level { kQuiet, kNormal, kVerbose };
/// What lines are for: text for people, or JSON for programs, an object a line (log_fact.hpp).
enum class Format { kText, kJson };

/// Sets how much this process says on stderr, and what its lines begin with ("rank 3"; may be
/// empty). Not thread safe: call it at start.
void configure(Level level, std::string who, bool color);

/// Sets what lines are for, and the rank that JSON lines name. Not thread safe: call it at start.
void set_format(Format format, std::optional<int> rank);
[[nodiscard]] Format format();

/// How long a reader of stderr that takes nothing (a terminal that is stopped, a full pipe) may
/// hold this process up; 30 s unless set. Lines are lost then, until it reads again.
void set_patience(Seconds longest);

[[nodiscard]] Level level();

/// Text for a terminal, as it is; left out where a terminal takes nothing now.
void draw(std::string_view text);

/// A line on stderr unless quiet.
void note(std::string_view text);
/// A line on stderr only when verbose.
void detail(std::string_view text);
/// "warning: …" on stderr, always.
void warning(std::string_view text);
/// "error: <who>: <message>" and its hint on stderr, always.
void error(const Error& error);

}  // namespace awex::log
