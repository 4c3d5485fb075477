#pragma once

#include <optional>
#include <string>

#include "base/error.hpp"
#include "cli/render_table.hpp"
#include "cycle/forecast.hpp"

namespace awex {

/// The first misfit as the error that `plan` ends with; absent when everything fits.
[[nodiscard]] std::optional<Error> misfit_error(const Forecast& forecast);

/// A forecast for a person: metadata lines, the traffic matrix, the phases with memory and time,
/// the pieces of the listed GPU with the reason for each, and the verdict.
[[nodiscard]] std::string render_plan(const Forecast& forecast, const Catalogue& catalogue,
                                      const ForecastOptions& options, const TextStyle& style);

/// A forecast as one JSON object, schema_version 1, ended by a newline; real numbers with their
/// unit in the key, null for what is unknown. Without a forecast, what is wrong with the request.
[[nodiscard]] std::string render_plan_json(const Forecast* forecast, const Catalogue* catalogue,
                                           const ForecastOptions& options,
                                           const std::optional<Error>& error);

}  // namespace awex
