#include "base/launch.hpp"

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

namespace awex {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment(const Variables& variables) {
  return [variables](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

// What Slurm 22.05 sets.
const Variables kBatch{{"SLURM_JOB_ID", "2"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}};
const Variables kSalloc{{"SLURM_JOB_ID", "1"}, {"SLURM_NTASKS", "2"}};
const Variables kStep{{"SLURM_JOB_ID", "2"},
                      {"SLURM_PROCID", "1"},
                      {"SLURM_NTASKS", "2"},
                      {"SLURM_STEP_ID", "0"},
                      {"SLURM_STEP_NUM_TASKS", "2"}};
const Variables kPmi2{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}};
const Variables kMpirun{{"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_SIZE", "4"},
                        {"PMIX_RANK", "1"},
                        {"PMIX_NAMESPACE", "430702593"}};

struct Case {
  Variables variables;
  Launcher launcher;
  std::optional<int> rank;
  std::optional<int> size;
  const char* name;
};

TEST_CASE("who started a process is read from its environment") {
  const std::vector<Case> cases{
      {{}, Launcher::kNone, {}, {}, "mpirun"},
      {kMpirun, Launcher::kMpirun, 1, 4, "mpirun"},
      {with(kBatch, kMpirun), Launcher::kMpirun, 1, 4, "mpirun"},
      // mpirun's daemon on a second node is a step of Slurm.
      {with(kStep, kMpirun), Launcher::kMpirun, 1, 4, "mpirun"},
      {{{"PMIX_RANK", "3"}}, Launcher::kPmix, 3, {}, "mpirun"},
      {with(kStep, {{"PMIX_RANK", "0"}, {"PMIX_NAMESPACE", "prterun-a-1@1"}}),
       Launcher::kPmix,
       0,
       {},
       "mpirun"},
      {with(kStep, {{"PMIX_RANK", "1"}, {"PMIX_NAMESPACE", "slurm.pmix.2.0"}}), Launcher::kSrun, 1,
       2, "srun"},
      {kBatch, Launcher::kNone, 0, {}, "srun"},
      {kSalloc, Launcher::kNone, {}, {}, "srun"},
      {kStep, Launcher::kSrunWithoutPmix, 1, 2, "srun"},
      {with(kStep, kPmi2), Launcher::kSrunWithoutPmix, 1, 2, "srun"},
      // Intel MPI's launcher starts its daemons by srun, one on each node.
      {with(kStep, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}}), Launcher::kOtherMpi, 5, 8, "srun"},
      {with(with(kStep, kPmi2), {{"MPI_LOCALNRANKS", "1"}}), Launcher::kOtherMpi, 1, 2, "srun"},
      {kPmi2, Launcher::kOtherMpi, 1, 2, "mpirun"},
      {{{"MV2_COMM_WORLD_RANK", "2"}, {"MV2_COMM_WORLD_SIZE", "4"}},
       Launcher::kOtherMpi,
       2,
       4,
       "mpirun"},
      {with(kPmi2, {{"FLUX_JOB_ID", "f"}}), Launcher::kNone, 1, {}, "mpirun"},
      {{{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}},
       Launcher::kTorchrun,
       1,
       4,
       "mpirun"},
      // A pod of a Kubernetes job, and a notebook.
      {{{"RANK", "1"}, {"WORLD_SIZE", "4"}}, Launcher::kNone, {}, {}, "mpirun"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}},
       Launcher::kNone,
       {},
       {},
       "mpirun"},
      {{{"PMI_RANK", "x"}}, Launcher::kNone, {}, {}, "mpirun"},
  };
  for (const auto& one : cases) {
    std::string shown;
    for (const auto& [name, value] : one.variables) shown += name + "=" + value + " ";
    CAPTURE(shown);
    const auto launch = read_launch(environment(one.variables));
    CHECK(launch.launcher == one.launcher);
    CHECK(launch.rank == one.rank);
    CHECK(launch.size == one.size);
    CHECK(std::string(launcher_name(launch)) == one.name);
  }
}

TEST_CASE("hints name commands of the launcher at hand") {
  const auto srun = read_launch(environment(kSalloc));
  const auto mpirun = read_launch(environment({}));
  CHECK(start_command(srun, 2) == "srun --mpi=pmix -n 2");
  CHECK(start_command(mpirun, 2) == "mpirun -np 2");
  CHECK(per_node_command(srun, "16") == "srun --mpi=pmix --ntasks-per-node=16");
  CHECK(per_node_command(mpirun, "16") == "mpirun --map-by ppr:16:node");
  CHECK(unbinding_options(srun).find("--cpus-per-task") != std::string::npos);
  CHECK(unbinding_options(mpirun) == "mpirun --bind-to none");
}

TEST_CASE("granted GPUs are told from none") {
  const auto granted = [](const char* name, const char* value) {
    const auto text = granted_gpus(environment({{name, value}}));
    if (!text.empty()) CHECK(text == std::string(name) + "=" + value);
    return !text.empty();
  };
  for (const char* value : {"0", "0,1", "GPU-1b2c", "MIG-1"}) {
    CHECK(granted("CUDA_VISIBLE_DEVICES", value));
  }
  for (const char* value : {"", "-1", "NoDevFiles"})
    CHECK_FALSE(granted("CUDA_VISIBLE_DEVICES", value));
  for (const char* name : {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS"}) CHECK(granted(name, "0"));
  for (const char* name : {"SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE",
                           "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET"}) {
    CHECK(granted(name, "2"));
    CHECK(granted(name, "a100:2"));
    CHECK(granted(name, "gpu:a100:0,gpu:h100:1"));
    CHECK_FALSE(granted(name, "0"));
    CHECK_FALSE(granted(name, "a100:0"));
    CHECK_FALSE(granted(name, ""));
  }
  CHECK(granted_gpus(environment({{"PATH", "/bin"}})).empty());
}

}  // namespace
}  // namespace awex
