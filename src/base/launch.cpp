#include "base/launch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace awex {
namespace {

std::optional<int> number(const char* value) {
  if (value == nullptr) return std::nullopt;
  const std::string_view text(value);
  int result = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  if (!whole || result < 0) return std::nullopt;
  return result;
}

std::optional<int> first_number(const Environment& variable,
                                std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const auto found = number(variable(name))) return found;
  }
  return std::nullopt;
}

bool begins_with(const char* value, std::string_view prefix) {
  return value != nullptr && std::string_view(value).substr(0, prefix.size()) == prefix;
}

const char* from_environment(const char* name) { return std::getenv(name); }

/// A task of a Slurm step. A batch script and salloc's shell have a job, but no step.
struct SlurmTask {
  std::optional<int> rank;
  std::optional<int> size;
};

std::optional<SlurmTask> slurm_task(const Environment& variable) {
  const bool in_step = variable("SLURM_STEP_ID") != nullptr || variable("SLURM_STEPID") != nullptr;
  const auto rank = number(variable("SLURM_PROCID"));
  if (!in_step || !rank) return std::nullopt;
  return SlurmTask{
      rank, first_number(variable, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"})};
}

/// Whether PMI variables are those of Slurm's own pmi2, not of an MPI's launcher in the step.
bool is_slurm_pmi(const Environment& variable, const std::optional<SlurmTask>& task) {
  const bool is_hydra = variable("MPI_LOCALNRANKS") != nullptr;
  const auto size = number(variable("PMI_SIZE"));
  return task && !is_hydra && (!size || size == task->size);
}

bool is_torchrun(const Environment& variable) {
  const auto size = number(variable("WORLD_SIZE"));
  return number(variable("RANK")) && number(variable("LOCAL_RANK")) && size && *size >= 2;
}

Launch as_launched(const Environment& variable) {
  if (const auto rank = number(variable("OMPI_COMM_WORLD_RANK"))) {
    return {Launcher::kMpirun, rank, number(variable("OMPI_COMM_WORLD_SIZE")), false};
  }
  const auto task = slurm_task(variable);
  if (const auto rank = number(variable("PMIX_RANK"))) {
    const char* name = variable("PMIX_NAMESPACE");
    const bool of_slurm = task && (name == nullptr || begins_with(name, "slurm."));
    if (of_slurm) return {Launcher::kSrun, rank, task->size, false};
    return {Launcher::kPmix, rank, std::nullopt, false};
  }
  const auto pmi_rank = first_number(variable, {"PMI_RANK", "MV2_COMM_WORLD_RANK", "PMI_ID"});
  // Flux speaks a PMI that Open MPI may know.
  if (variable("FLUX_JOB_ID") != nullptr) return {Launcher::kNone, pmi_rank, std::nullopt, false};
  if (pmi_rank && !is_slurm_pmi(variable, task)) {
    return {Launcher::kOtherMpi, pmi_rank,
            first_number(variable, {"PMI_SIZE", "MV2_COMM_WORLD_SIZE"}), false};
  }
  if (task) return {Launcher::kSrunWithoutPmix, task->rank, task->size, false};
  if (is_torchrun(variable)) {
    return {Launcher::kTorchrun, number(variable("RANK")), number(variable("WORLD_SIZE")), false};
  }
  return {Launcher::kNone, number(variable("SLURM_PROCID")), std::nullopt, false};
}

/// Whether the value of CUDA_VISIBLE_DEVICES shows a GPU. Slurm writes NoDevFiles for none.
bool shows_gpus(std::string_view devices) {
  return !devices.empty() && devices != "-1" && devices != "NoDevFiles";
}

/// Whether "2", "a100:2" or "gpu:a100:2,gpu:h100:0" counts a GPU.
bool counts_gpus(std::string_view text) {
  while (!text.empty()) {
    const auto one = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), one.size() + 1));
    const auto colon = one.rfind(':');
    const auto count = colon == std::string_view::npos ? one : one.substr(colon + 1);
    if (!count.empty() && count != "0") return true;
  }
  return false;
}

}  // namespace

Launch read_launch(const Environment& variable) {
  auto launch = as_launched(variable);
  launch.in_slurm = variable("SLURM_JOB_ID") != nullptr || variable("SLURM_JOBID") != nullptr;
  return launch;
}

const Launch& this_launch() {
  static const Launch launch = read_launch(from_environment);
  return launch;
}

bool uses_srun(const Launch& launch) {
  switch (launch.launcher) {
    case Launcher::kSrun:
    case Launcher::kSrunWithoutPmix:
      return true;
    case Launcher::kMpirun:
    case Launcher::kPmix:
      return false;
    case Launcher::kNone:
    case Launcher::kOtherMpi:
    case Launcher::kTorchrun:
      return launch.in_slurm;
  }
  return false;
}

const char* launcher_name(const Launch& launch) { return uses_srun(launch) ? "srun" : "mpirun"; }

std::string start_command(const Launch& launch, int ranks) {
  return fmt::format("{} {}", uses_srun(launch) ? "srun --mpi=pmix -n" : "mpirun -np", ranks);
}

std::string per_node_command(const Launch& launch, const std::string& ranks) {
  return uses_srun(launch) ? fmt::format("srun --mpi=pmix --ntasks-per-node={}", ranks)
                           : fmt::format("mpirun --map-by ppr:{}:node", ranks);
}

std::string unbinding_options(const Launch& launch) {
  return uses_srun(launch) ? "srun --cpus-per-task=N or --cpu-bind=none" : "mpirun --bind-to none";
}

std::string granted_gpus(const Environment& variable) {
  std::vector<std::string> grants;
  const auto add = [&](const char* name, const auto& grants_gpus) {
    const char* value = variable(name);
    if (value != nullptr && grants_gpus(value)) grants.push_back(fmt::format("{}={}", name, value));
  };
  add("CUDA_VISIBLE_DEVICES", shows_gpus);
  // The first two list GPUs by index, the others count them.
  for (const char* name : {"SLURM_STEP_GPUS", "SLURM_JOB_GPUS"}) add(name, shows_gpus);
  for (const char* name : {"SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE",
                           "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET"}) {
    add(name, counts_gpus);
  }
  return fmt::format("{}", fmt::join(grants, ", "));
}

std::string granted_gpus() { return granted_gpus(from_environment); }

}  // namespace awex
