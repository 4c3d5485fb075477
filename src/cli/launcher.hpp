#pragma once

#include <optional>

namespace awex {

/// This process's rank as its launcher (mpirun, srun) tells it in the environment, before MPI is
/// initialised; absent when it was started alone.
[[nodiscard]] std::optional<int> launched_rank();

}  // namespace awex
