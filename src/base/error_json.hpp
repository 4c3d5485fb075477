#pragma once

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"

namespace awex {

/// An error as reports have it: code, place (rank, host, gpu, role, phase, tag, tensor), message
/// and hint, null for what it does not say.
[[nodiscard]] nlohmann::ordered_json error_json(const Error& error);

}  // namespace awex
