#pragma once

#include "comm/job.hpp"
#include "cycle/options.hpp"

namespace awex {

/// Checks that all ranks were started with the same command, options and program: they decide which
/// phases there are, and so which collective calls meet. Launches of several programs (--role) can
/// get this wrong. Throws an agreed request error that names both sides of the first difference.
/// Collective.
void check_common_options(Job& job, const Request& request);

}  // namespace awex
