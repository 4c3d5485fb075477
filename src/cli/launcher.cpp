#include "cli/launcher.hpp"

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace awex {

std::optional<int> launched_rank() {
  // Open MPI, PMIx, MPICH's Hydra and Slurm, the most specific first: a job step of Slurm may hold
  // one mpirun with all ranks in it.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    const char* value = std::getenv(name);
    if (value == nullptr) continue;
    const std::string_view text(value);
    int rank = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
    if (error == std::errc{} && end == text.data() + text.size() && rank >= 0) return rank;
  }
  return std::nullopt;
}

}  // namespace awex
