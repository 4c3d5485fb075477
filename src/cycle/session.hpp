#pragma once

#include "comm/job.hpp"
#include "cycle/observer.hpp"
#include "cycle/options.hpp"
#include "cycle/report.hpp"

namespace awex {

/// What is known of a run before it has done anything.
[[nodiscard]] Report begin_report(const Request& request, const Job& job);

/// Runs a request on this rank and returns what happened: complete on rank 0, with the same `error`
/// on every rank that lives. Never throws an Error. Collective over all ranks of the job.
[[nodiscard]] Report run_command(const Request& request, Job& job, CycleObserver& observer);

}  // namespace awex
