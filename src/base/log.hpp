#pragma once

#include <string>
#include <string_view>

#include "base/error.hpp"

namespace awex::log {

enum class Level { kQuiet, kNormal, kVerbose };

/// Sets how much this process says on stderr, and what its lines begin with ("rank 3"; may be
/// empty). Not thread safe: call it at start.
void configure(Level level, std::string who, bool color);

[[nodiscard]] Level level();

/// A line on stderr unless quiet.
void note(std::string_view text);
/// A line on stderr only when verbose.
void detail(std::string_view text);
/// "warning: …" on stderr, always.
void warning(std::string_view text);
/// "error: <who>: <message>" and its hint on stderr, always.
void error(const Error& error);

}  // namespace awex::log
