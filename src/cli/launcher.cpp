#include "cli/launcher.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "base/launch.hpp"
#include "cycle/world.hpp"

namespace awex {
namespace {

std::string start_hint(const std::string& command) {
  const auto& launch = this_launch();
  return fmt::format("start it with {}: {} awex-colocate {} ...", launcher_name(launch),
                     start_command(launch, 2), command);
}

std::string processes(const Launch& launch) {
  if (!launch.size) return "this process";
  return *launch.size == 1 ? "one process" : fmt::format("{} processes", *launch.size);
}

}  // namespace

std::optional<Error> wrong_launch(const std::string& command) {
  const auto& launch = this_launch();
  switch (launch.launcher) {
    case Launcher::kNone:
    case Launcher::kMpirun:
    case Launcher::kPmix:
    case Launcher::kSrun:
      return std::nullopt;
    case Launcher::kSrunWithoutPmix:
      if (mpi_speaks_pmi()) return std::nullopt;
      return request_error(
          fmt::format("srun started {} of {} without PMIx, and without it {} makes no job of them",
                      processes(launch), command, mpi_name()),
          fmt::format("start it with srun --mpi=pmix: {} awex-colocate {} ...; srun --mpi=list "
                      "tells whether this Slurm has pmix, and if not, mpirun works inside of "
                      "sbatch and salloc",
                      start_command(launch, std::max(2, launch.size.value_or(2))), command));
    case Launcher::kOtherMpi:
      if (mpi_speaks_pmi()) return std::nullopt;
      return request_error(
          fmt::format("the launcher of another MPI (MPICH, Intel MPI or MVAPICH: PMI_RANK is set) "
                      "started {} of {}, but this program was built with {}",
                      processes(launch), command, mpi_name()),
          fmt::format("start it with {} of {} (mpirun --version names the one in PATH): {} "
                      "awex-colocate {} ...",
                      uses_srun(launch) ? "srun --mpi=pmix, or mpirun" : "mpirun", mpi_name(),
                      start_command(launch, std::max(2, launch.size.value_or(2))), command));
    case Launcher::kTorchrun:
      return request_error(
          fmt::format("torchrun started {} of {} (RANK, LOCAL_RANK and WORLD_SIZE are set), but "
                      "this program is an MPI program, built with {}",
                      processes(launch), command, mpi_name()),
          fmt::format("start it with {} instead: {} awex-colocate {} ...", launcher_name(launch),
                      start_command(launch, launch.size.value_or(2)), command));
  }
  return std::nullopt;
}

std::optional<int> launched_rank() { return this_launch().rank; }

void let_rank_0_speak(ExitCode code) {
  // A launcher that ends the others when the first has failed gets the same code from all.
  static std::atomic<int> code_when_ended;
  code_when_ended = static_cast<int>(code);
  std::signal(SIGTERM, [](int /*signal*/) { ::_exit(code_when_ended); });
  std::this_thread::sleep_for(std::chrono::seconds(5));
}

std::optional<ExitCode> refuse_wrong_launch(const std::string& command) {
  const auto error = wrong_launch(command);
  if (!error) return std::nullopt;
  const auto& launch = this_launch();
  if (launch.rank.value_or(0) == 0) throw Error(*error);
  let_rank_0_speak(error->code());
  // Rank 0 of torchrun may be on another node, started by another torchrun.
  if (launch.launcher == Launcher::kTorchrun) throw Error(*error);
  return error->code();
}

Error too_few_ranks(const std::string& command) {
  const auto& launch = this_launch();
  if (launch.size.value_or(1) >= 2) {
    return request_error(
        fmt::format("{} was started as {}, but {} made each of them a job of its own", command,
                    processes(launch), mpi_name()),
        fmt::format("use the launcher of {}; mpirun --version names the one in PATH, srun "
                    "--mpi=list the ways of Slurm",
                    mpi_name()));
  }
  return request_error(
      fmt::format("{} needs a trainer and an inference rank, but the job has one rank", command),
      start_hint(command));
}

}  // namespace awex
