#pragma once

#include <optional>
#include <string>

#include "base/error.hpp"

namespace awex {

/// This process's rank as its launcher (mpirun, srun) tells it in the environment, before MPI is
/// initialised; absent when it was started alone.
[[nodiscard]] std::optional<int> launched_rank();

/// For ranks other than 0 with wrong options, before they tell their error: waits until rank 0 has
/// told its own. A launcher ends all ranks when the first has failed, which gives each the exit
/// code `code`; so this returns only where rank 0 found nothing wrong.
void let_rank_0_speak(ExitCode code);

/// Before MPI is initialised: the request error of a start of `command` from which MPI cannot make
/// one job (srun without PMIx, another MPI's mpirun, torchrun), which MPI meets with an abort or a
/// job for each process.
[[nodiscard]] std::optional<Error> wrong_launch(const std::string& command);

/// Refuses such a start. Throws the request error on the process that is to tell it; the others get
/// the exit code to end with, after the first has had time to speak.
[[nodiscard]] std::optional<ExitCode> refuse_wrong_launch(const std::string& command);

/// The error of a job of one rank.
[[nodiscard]] Error too_few_ranks(const std::string& command);

}  // namespace awex
