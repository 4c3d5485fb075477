#pragma once

#include <functional>
#include <optional>
#include <string>

namespace awex {

/// Who started this process, as its environment tells before MPI is initialised.
enum class Launcher {
  kNone,             ///< Nobody that is known: a shell, or a launcher that MPI may know.
  kMpirun,           ///< Open MPI's mpirun.
  kPmix,             ///< Another server of PMIx (prterun).
  kSrun,             ///< srun --mpi=pmix.
  kSrunWithoutPmix,  ///< srun --mpi=none or pmi2: a task of a Slurm step that PMIx does not serve.
  kOtherMpi,         ///< mpirun of MPICH, Intel MPI or MVAPICH.
  kTorchrun,         ///< torchrun, or what sets the same variables.
};

struct Launch {
  Launcher launcher = Launcher::kNone;
  std::optional<int> rank;  ///< Among the processes that were started together, where told.
  std::optional<int> size;  ///< How many were started together, where told.
  bool in_slurm = false;    ///< Inside a Slurm job, started by srun or not.
};

/// A variable's value, null where it is not set.
using Environment = std::function<const char*(const char*)>;

[[nodiscard]] Launch read_launch(const Environment& variable);
/// This process's, as it was when first asked for: ask before MPI's start, which sets variables.
[[nodiscard]] const Launch& this_launch();

/// Whether hints name srun: under srun, and in a Slurm job where mpirun was not used.
[[nodiscard]] bool uses_srun(const Launch& launch);
/// "srun" or "mpirun".
[[nodiscard]] const char* launcher_name(const Launch& launch);
/// What starts `ranks` ranks: "srun --mpi=pmix -n 2" or "mpirun -np 2".
[[nodiscard]] std::string start_command(const Launch& launch, int ranks);
/// The same with as many ranks on each node: "srun --ntasks-per-node=16" or
/// "mpirun --map-by ppr:16:node".
[[nodiscard]] std::string per_node_command(const Launch& launch, const std::string& ranks);
/// The options that give a rank more than one core.
[[nodiscard]] std::string unbinding_options(const Launch& launch);

/// The variables that grant GPUs to this process, "SLURM_GPUS_ON_NODE=2, …"; empty where none does.
[[nodiscard]] std::string granted_gpus(const Environment& variable);
[[nodiscard]] std::string granted_gpus();

}  // namespace awex
